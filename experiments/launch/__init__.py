"""Set-up, flags and experiments, as commands share them."""
