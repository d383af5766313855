"""Networks against another implementation with the same weights. (A package: file names repeat tests/models.)"""
