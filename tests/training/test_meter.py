"""What the log says of steps that become slow."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.devices import make_mesh
from genjax.training.log import Metrics, MetricsLog
from genjax.training.meter import Meter


class Clock(MetricsLog):
    """A log that writes nothing, whose time a test sets."""

    seconds = 0.0

    def __init__(self):
        pass

    def go_on(self, seconds):
        pass

    def write(self, step, metrics):
        pass


def test_slow_steps_are_told():
    """Four windows of 20 s, one of 36 s, and one of 60 s."""
    log = Clock()
    meter = Meter(log, None, 2, 100, make_mesh({"data": -1}, jax.device_count()), 0)
    metrics = Metrics(np.ones((1, 2), np.float32), ("loss",))

    def window(step, seconds):
        for each in (step - 1, step):
            log.seconds += seconds / 2
            meter.add(each, metrics)
        meter.read()

    with warnings.catch_warnings(action="error"):
        for number, seconds in enumerate((20, 20, 20, 20, 36), 1):
            window(2 * number, seconds)
    with pytest.warns(
        UserWarning, match="the 2 steps until step 12 were 3.0 times slower.*0.0333 a second, 0%"
    ):
        window(12, 60)


def test_short_windows_are_not_told():
    """Windows of 1 s, one of which takes 20 s: what takes less than 30 s varies by itself."""
    log = Clock()
    meter = Meter(log, None, 1, 100, make_mesh({"data": -1}, jax.device_count()), 0)
    with warnings.catch_warnings(action="error"):
        for step, seconds in enumerate((1, 1, 1, 1, 20), 1):
            log.seconds += seconds
            meter.add(step, Metrics(np.ones((1, 2), np.float32), ("loss",)))
            meter.read()


def test_the_share_of_the_peak_is_that_of_all_devices(monkeypatch, unchecked_annotations):
    """60 operations in each of 2 seconds, by four devices that can do 100 in a second."""
    device = SimpleNamespace(device_kind="", memory_stats=lambda: None)
    mesh = SimpleNamespace(devices=np.array([device]), size=4, local_devices=[device])
    monkeypatch.setattr("genjax.training.meter.peak_operations", lambda kind: 100.0)
    log, rows = Clock(), []
    log.write = lambda step, row: rows.append(row)
    meter = Meter(log, None, 2, 2, mesh, 0)
    meter.compile(jax.jit(jnp.dot), jnp.ones((5, 2)), jnp.ones((2, 3)))
    for step in (1, 2):
        log.seconds += 1
        meter.add(step, Metrics(np.ones((1, 2), np.float32), ("loss",)))
    meter.read()
    assert rows[0]["operations_per_second"] == 60 and rows[0]["peak_share"] == 0.15


@pytest.mark.parametrize(
    ("names", "kept"),
    [(["loss"], {"loss": 6.5}), (["error"], {"loss": 7.0})],
    ids=["a shorter window", "other metrics"],
)
def test_a_window_goes_on_with_those_of_its_steps_that_still_count(names, kept):
    """A run stops after step 5 of a window of 10. It goes on with windows of 4."""
    log, rows = Clock(), []
    log.write = lambda step, row: rows.append(row)
    meter = Meter(log, None, 4, 100, make_mesh({"data": -1}, jax.device_count()), 0)
    meter.go_on(5, names, [[[float(step), 1.0]] for step in range(1, 6)])
    for step in (6, 7, 8):
        log.seconds += 1
        meter.add(step, Metrics(np.array([[step, 1]], np.float32), ("loss",)))
    meter.read()
    assert {name: rows[0][name] for name in ("loss", "error") if name in rows[0]} == kept
