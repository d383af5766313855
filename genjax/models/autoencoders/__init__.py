"""Autoencoders of images, video and sound, one file per architecture."""
