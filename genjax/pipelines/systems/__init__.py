"""Published systems, one a file."""
