"""Evaluators: measures of what a trained task generates."""
