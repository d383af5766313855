"""Tasks: a network, an algorithm and their optimization, a family a file.

What programs ask of a task is `genjax.training.task.GenerativeTask`.
"""
