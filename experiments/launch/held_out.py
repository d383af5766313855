"""Check before training that the held-out set is large enough for what it will measure."""

import sys

import jax

from experiments.evaluation.few_examples import FEW, describe_few
from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment
from genjax.data import Dataset


def check_held_out(experiment: Experiment) -> bool:
    """Check that there are enough held-out examples for the measures; warn if they are few.

    Return whether they are few, so that the report need not warn again.

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
        return False
    data, dataset = experiment.data, _open(experiment.data)
    title = f"{data.name} ({data.held_out_split})"
    for measure, least in needs:
        count = measure.evaluator.context.num_samples
        count_held_out = getattr(measure.evaluator, "count_held_out", lambda data: len(data.source))
        there = count_held_out(dataset)
        if there < least:
            total, name = len(dataset.source), f"config.evaluation.measures.{measure.name}"
            of = f" of {total}" if there < total else ""
            raise ValueError(
                f"{title} has {there} different examples{of}, and {name} needs {least}: add "
                "examples, set another --config.data.held_out_split, or remove the measure from "
                "the config; --config.evaluation.measures={} removes all"
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
    return compared < FEW


def _open(data: Data) -> Dataset:
    try:
        return data.held_out()
    except ValueError as error:  # of an empty split, or of none with this name
        raise ValueError(
            f"{error} (while reading the held-out examples, "
            f"config.data.held_out_split={data.held_out_split!r})"
        ) from error
