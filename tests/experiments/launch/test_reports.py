import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.launch.reports import alarms, print_report, training_summary
from genjax.devices import make_mesh
from genjax.training.log import Metrics, MetricsLog
from genjax.training.meter import Meter


def test_goodput_is_the_share_of_time_in_steps(tmp_path):
    """40 s of 50: 100 steps of 5 a second, 200 of 10."""
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "device": "1 × cpu"}))
    rows = [
        {"step": 100, "seconds": 26.0, "steps_per_second": 5.0, "compile_seconds": 4.5},
        {"step": 100, "seconds": 30.0, "fid": 3.0},
        {"step": 300, "seconds": 50.0, "steps_per_second": 10.0, "compile_seconds": 1.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = training_summary(tmp_path, "name", 300)
    assert summary["goodput"] == pytest.approx(0.8) and summary["seconds"] == 50.0
    assert summary["steps_per_second"] == pytest.approx(300 / 40)
    assert summary["compile_seconds"] == 6.0
    until = training_summary(tmp_path, "name", 100)
    assert (until["seconds"], until["steps_per_second"]) == (30.0, 5.0)
    (tmp_path / "metrics.jsonl").unlink()
    assert training_summary(tmp_path, "name", 300).keys() == {"experiment", "steps", "device"}


def test_alarms_go_by_the_last_metrics_until_a_step_and_by_what_was_measured(tmp_path):
    rows = [
        {"step": 100, "steps_per_second": 5.0, "loss": 3.0},
        {"step": 200, "steps_per_second": 5.0, "loss": 2.0, "fid": 9.0},
        {"step": 200, "fid": 7.0},
        {"step": 300, "steps_per_second": 5.0, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = SimpleNamespace(alarms=lambda metrics: [(metrics["loss"], metrics["fid"])])
    assert alarms(task, {"fid": 7.0, "labels": "balanced"}, tmp_path, 200) == [(2.0, 7.0)]


@pytest.mark.parametrize(
    "losses, diverged",
    [
        ([5.0, 1.8, 6.4, 9.0, 30.0], True),
        ([5.0, 1.8, 4.9, 9.0, 30.0], False),  # one of the last three is below the first
        ([5.0, 2.0, 6.0, 9.0, 30.0], False),  # and here only three times the lowest
        ([5.0, 1.8, 30.0, 9.0, 1.9], False),  # recovered
        ([5.0, 4.0, 3.0], False),
        ([5.0, -1.0, 30.0, 30.0, 30.0], False),
        ([], False),
    ],
)
def test_a_loss_far_above_its_lowest_and_its_first_has_diverged(losses, diverged, tmp_path):
    rows = [
        {"step": 100 * i, "steps_per_second": 5.0, "loss": loss} for i, loss in enumerate(losses)
    ]
    rows.append({"step": 100 * len(rows), "fid": 3.0})  # measured, not logged in training
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = alarms(SimpleNamespace(alarms=lambda metrics: []), {}, tmp_path, 1000)
    said = "Diverged: the loss is 30. It was 5 at first, and 1.8 at its lowest. "
    assert found == [said + "Try a lower learning rate."] * diverged


def test_figures_of_few_examples_are_printed_with_their_uncertainty(capsys):
    print_report({"precision": 0.5, "samples_per_distance": 100})
    warning, *figures = capsys.readouterr().out.splitlines()
    assert warning.startswith("  warning: measures compare with only 100") and "±10" in warning
    assert len(figures) == 2
    print_report({"precision": 0.5, "samples_per_distance": 100}, warned=True)
    assert capsys.readouterr().out.splitlines() == figures
    print_report({"precision": 0.5, "samples_per_distance": 200})
    assert "warning" not in capsys.readouterr().out


class Clock(MetricsLog):
    """A log that keeps its rows, and whose time a test sets."""

    seconds = 0.0

    def __init__(self):
        self.rows = []

    def write(self, step, metrics):
        self.rows.append({"step": step, "seconds": self.seconds, **metrics})


def test_a_stop_within_a_window_does_not_count_its_steps_twice(tmp_path):
    """A run stops at step 95; its last window has 5 steps in 1 s and a save of 0.25 s."""
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "device": "1 × cpu"}))
    meter = Meter(log := Clock(), None, 100, 100, make_mesh({"data": -1}, jax.device_count()), 0)
    for step in range(96, 101):
        log.seconds += 0.2
        meter.add(step, Metrics(np.ones((1, 2), np.float32), ("loss",)))
    meter.read()
    log.seconds += 0.25
    log.write(100, {"fid": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log.rows))
    assert training_summary(tmp_path, "name", 100)["goodput"] == pytest.approx(0.8)
