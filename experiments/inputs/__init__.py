"""Inputs of tasks: data sets, spaces and conditions, by config."""
