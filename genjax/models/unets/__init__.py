"""Diffusion U-Nets, one file per architecture."""
