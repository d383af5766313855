"""What the commands share: set-up, flags, opening a run."""
