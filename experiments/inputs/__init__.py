"""What tasks are given: data sets, spaces and conditions, by config."""
