"""How a few-step student learns: the losses of genjax.distillation as parts of a config.

A method is called `method(key, student, x) -> (losses, times)`. Its fields are the numbers of its
paper. Its class attributes say what network and config it needs.
"""

from experiments.tasks.methods.student import Losses as Losses
from experiments.tasks.methods.student import Method as Method
from experiments.tasks.methods.student import Student as Student
