"""Pages that present runs."""
