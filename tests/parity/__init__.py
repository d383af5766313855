"""Networks compared with another implementation that has the same weights.

This folder is a package because its file names repeat those of tests/models.
"""
