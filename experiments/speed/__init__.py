"""Programs and records that the benchmark, the planner and the comparison with peers share."""
