"""What benchmarks, plans and comparisons with peers share."""
