"""Programs and records that benchmarks, plans and comparisons with peers share."""
