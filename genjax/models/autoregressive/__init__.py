"""Autoregressive networks, one file per architecture."""
