"""Autoencoders of images and video, one file per architecture."""
