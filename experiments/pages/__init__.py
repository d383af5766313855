"""The pages in which runs are read."""
