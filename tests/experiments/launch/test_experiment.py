"""An experiment refuses, before any training, measures that would measure nothing."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from experiments.configuration import base
from experiments.inputs.conditions import Classes
from experiments.launch.experiment import Experiment, Measure, with_intervals
from experiments.tasks.discrete_diffusion import DiscreteDiffusion
from experiments.tasks.masked_autoregression import MaskedAutoregression

DIGITS = dict(name="digits", image_shape=(8, 8, 1))


def measured_by_few_steps(config, *, own=(), **task):
    config.evaluation.measures = dict(few=dict(own, name="FewSteps"))
    task = SimpleNamespace(space=None, condition=Classes(10), **task)
    return Experiment.from_config(config, task).measures


def test_numbers_of_steps_are_measured_where_samples_depend_on_them():
    (measure,) = measured_by_few_steps(
        base.discrete_diffusion("steps", **DIGITS), built_with=DiscreteDiffusion.built_with
    )
    assert measure.name == "few"


def test_a_measure_may_have_a_schedule_and_samples_of_its_own():
    config, task = base.discrete_diffusion("steps", **DIGITS), DiscreteDiffusion
    config.evaluation.update(every=50, num_samples=40, labels="none")
    for own, expected in (
        (dict(every=3, num_samples=7, labels="training"), (3, 7, "training")),
        (dict(), (50, 40, "none")),
    ):
        (measure,) = measured_by_few_steps(config, own=own, built_with=task.built_with)
        context = measure.evaluator.context
        assert (measure.every, context.num_samples, context.labels) == expected


def test_samples_that_do_not_depend_on_the_number_of_steps_are_refused():
    """All numbers of steps would have the same figures."""
    message = r"FewSteps, which varies config\.sampling\.num_steps; .* leave the measure out"
    with pytest.raises(ValueError, match=message):  # it has no such field
        measured_by_few_steps(base.autoregression("steps", 17, **DIGITS))
    with pytest.raises(ValueError, match=message):  # only a task built anew would read it
        measured_by_few_steps(
            base.masked_autoregression("steps", **DIGITS),
            built_with=MaskedAutoregression.built_with,
        )


def test_intervals_are_refused_where_no_measure_has_one():
    """A measure may have this number of resamples already."""

    @dataclass(frozen=True)
    class Resampled:
        resamples: int = 0

    has, bare = Measure("a", 0, Resampled(3)), Measure("b", 0, None)
    assert with_intervals([has, bare], 3) == (has, bare)
    assert with_intervals([bare, has], 5) == (bare, Measure("a", 0, Resampled(5)))
    for measures, named in (([bare], "b"), ([], "nothing")):
        with pytest.raises(
            ValueError, match=f"--resamples=3 is for Samples .* measured by {named}"
        ):
            with_intervals(measures, 3)
