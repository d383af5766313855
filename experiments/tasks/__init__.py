"""Tasks: a network, an algorithm and their optimization, a family a file.

The protocol `genjax.training.task.GenerativeTask` says what programs need of a task.
"""
