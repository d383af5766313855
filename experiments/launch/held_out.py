"""Check before training that the held-out set is large enough for what it will measure."""

import math
import sys

import jax

from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment
from genjax.data import Dataset

FEW = 200  # below, figures vary so much that they are warned of


def check_held_out(experiment: Experiment) -> None:
    """Check that there are enough held-out examples for the measures; warn if they are few.

    A measure needs as many as its `least_held_out` says, none if it has no such attribute. Its
    `count_held_out(dataset)`, if it has one, says how many there are for it.

    Raises:
        ValueError: a measure needs more than there are, or than `num_samples` takes of them.
    """
    needs = [
        (measure, least)
        for measure in experiment.measures
        if (least := getattr(measure.evaluator, "least_held_out", 0))
    ]
    if not needs:
        return
    data, dataset = experiment.data, _open(experiment.data)
    title = f"{data.name} ({data.held_out_split})"
    for measure, least in needs:
        count = measure.evaluator.context.num_samples
        there = getattr(measure.evaluator, "count_held_out", _count)(dataset)
        if there < least:
            raise ValueError(
                f"{title} has {there} different examples, and config.evaluation.measures."
                f"{measure.name} needs {least}: add examples, set another "
                "--config.data.held_out_split, or remove the measure from the config"
            )
        if count < least:
            raise ValueError(
                f"config.evaluation.num_samples is {count}, and config.evaluation.measures."
                f"{measure.name} needs {least}"
            )
    compared = min(
        len(dataset.source), *(measure.evaluator.context.num_samples for measure, _ in needs)
    )
    if compared < FEW and jax.process_index() == 0:
        print(f"warning: {describe_few(title, compared)}", file=sys.stderr, flush=True)


def _count(dataset: Dataset) -> int:
    return len(dataset.source)


def _open(data: Data) -> Dataset:
    try:
        return data.held_out()
    except ValueError as error:  # of an empty split, or of none with this name
        raise ValueError(
            f"config.data.held_out_split is {data.held_out_split!r}: {error}"
        ) from error


def describe_few(title: str, count: int) -> str:
    """Return how uncertain figures from so few examples are.

    A share p of n examples has a 95 % interval of ±1.96·√(p(1 − p)/n), which is widest at p = 1/2.
    """
    half = 1.96 * math.sqrt(0.25 / count)
    return (
        f"measures compare with only {count} examples of {title}: shares such as precision and "
        f"accuracy are known to ±{100 * half:.0f} points (95 % interval), and Fréchet distances "
        "are too large; compare them only between runs with as many examples"
    )
