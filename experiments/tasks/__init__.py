"""Tasks: a network, an algorithm and their optimization, with one file per family.

The protocol `genjax.training.task.GenerativeTask` says what programs need of a task.
"""
