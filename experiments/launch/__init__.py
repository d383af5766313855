"""Set-up, flags and experiments, which the commands share."""
