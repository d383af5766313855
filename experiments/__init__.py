"""Tasks, and the programs that train, sample, evaluate and time them."""
