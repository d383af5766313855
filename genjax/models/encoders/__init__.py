"""Encoders of text, images, video and sound, one file per architecture."""
