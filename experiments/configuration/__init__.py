"""The language of configs: from names to objects."""
