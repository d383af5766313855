"""Published weights against what their authors' code makes of them. (A package: file names repeat tests/models.)"""
