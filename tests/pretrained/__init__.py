"""Published weights compared with their authors' code.

This folder is a package because its file names repeat those of tests/models.
"""
