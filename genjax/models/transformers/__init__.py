"""Diffusion transformers, one file per architecture."""
