"""Encoders of text and images, one file per architecture."""
