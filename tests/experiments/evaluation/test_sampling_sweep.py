"""The records and the table of a sweep, with given images in place of samples."""

from types import SimpleNamespace

import pytest

from configs import digits_flow
from experiments.configuration.runs import build
from experiments.evaluation import sampling_sweep
from experiments.evaluation.sampling_sweep import (
    VERDICTS,
    describe,
    describe_verdicts,
    markdown,
    measure,
)
from genjax.data import load_dataset

RECORD = dict(
    workdir="runs/a", experiment="flow", sampler="euler", num_steps=5, frechet_distance=1.25
)


@pytest.mark.parametrize(
    ("condition", "labels", "expected"),
    [
        (dict(name="Classes", num_classes=10), "balanced", {"class_accuracy", "frechet_distance"}),
        (dict(name="Classes", num_classes=10), "none", {"frechet_distance"}),
        (dict(name="Unconditional"), "balanced", {"frechet_distance"}),
    ],
)
def test_class_accuracy_is_measured_of_classes_alone(monkeypatch, condition, labels, expected):
    config = digits_flow.get_config()
    config.condition, config.evaluation.labels = condition, labels
    images = load_dataset("digits").source[:50]["image"]
    monkeypatch.setattr(sampling_sweep, "sample", lambda *_: images)
    run = SimpleNamespace(folder="runs/a", step=1, config=config, task=build(config))
    record = measure(run, None, 50, num_steps=4)
    assert record.keys() & {"class_accuracy", "frechet_distance"} == expected
    assert record["num_steps"] == 4


@pytest.mark.parametrize("accuracy", [{}, {"class_accuracy": 0.5}])
def test_the_table_has_accuracy_where_there_is_one(accuracy):
    record = dict(weights="ema", guidance_scale=1.0, frechet_distance=2.0) | accuracy
    seeds = [record | {"verdict": verdict} for verdict in VERDICTS for _ in range(2)]
    header, rule, *rows = describe_verdicts([record, *seeds]).splitlines()
    assert ("accuracy" in header) == bool(accuracy)
    assert {line.count("|") for line in (header, rule, *rows)} == {6 + len(accuracy)}
    assert all((" 50.0 % " in row) == bool(accuracy) for row in rows)


def test_figures_without_class_accuracy_are_shown():
    assert describe(RECORD) == "runs/a euler 5: 1.250"
    assert describe(RECORD | {"class_accuracy": 0.5}) == "runs/a euler 5: 0.500 1.250"
    assert markdown([RECORD]).splitlines()[-1] == "| flow | euler | 1.25 |"


def test_runs_of_one_experiment_have_rows_of_their_own():
    """As the runs of two seeds: the table names the experiment and the folder."""
    other = RECORD | dict(workdir="runs/b", frechet_distance=1.5)
    another = RECORD | dict(workdir="runs/c", experiment="v", frechet_distance=2.0)
    assert markdown([RECORD, other, another]).splitlines()[2:] == [
        "| flow (runs/a) | euler | 1.25 |",
        "| flow (runs/b) | euler | 1.5 |",
        "| v | euler | 2 |",
    ]
