"""Attention: one function that chooses among implementations, and the layer of several heads."""
