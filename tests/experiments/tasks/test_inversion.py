"""The held-out examples that an encoder for a finished generator reconstructs."""

import dataclasses

import numpy as np

from experiments.inputs.conditions import Classes, Unconditional
from experiments.tasks.inversion import Inversion

ORIGINALS = np.arange(12).reshape(4, 3)  # of four labels


def encoder(condition):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Inversion))
    return Inversion(**fields | dict(condition=condition, columns=3))


def test_without_classes_all_originals_are_shown_before_one_is_shown_again():
    task = encoder(Unconditional(num_rows=4))
    assert task.num_originals == task.originals_per_label == 12
    chosen = task._chosen(ORIGINALS, np.zeros(13, int), np.arange(13))
    assert chosen.tolist() == [*range(12), 0]


def test_with_classes_each_has_its_own_originals():
    task = encoder(Classes(4))
    assert (task.num_originals, task.originals_per_label) == (12, 3)
    chosen = task._chosen(ORIGINALS, np.array([2, 2, 2, 1]), np.arange(4))
    assert chosen.tolist() == [6, 7, 8, 3]
