"""Event files as TensorBoard itself reads them."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from genjax.training.log import MetricsLog, read_metrics
from genjax.training.pictures import image_grid

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    accumulator = accumulators.EventAccumulator(
        str(folder), size_guidance={"images": 0}
    )  # all of them
    accumulator.Reload()
    return accumulator


def curve(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_numbers_and_pictures_come_back(tmp_path):
    picture = image_grid(
        np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), columns=2
    )
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(10, {"loss": 0.5, "norm/update/head": 2.0})
    assert curve(tmp_path, "loss") == [
        (10, 0.5)
    ]  # before the file is closed: TensorBoard shows a run as it goes
    log.write(10, {"samples": picture})
    log.write(20, {"loss": 0.25, "norm/update/head": 1e-3})
    log.close()
    assert curve(tmp_path, "loss") == [(10, 0.5), (20, 0.25)]
    assert curve(tmp_path, "norm/update/head")[1] == (20, np.float32(1e-3))
    (event,) = read(tmp_path).Images("samples")
    assert (event.step, event.width, event.height) == (10, *picture.size)
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        10,
        20,
    ]  # no line of a picture


def test_a_resumed_run_s_curves_do_not_double_back(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(10, 60, 10):
        log.write(step, {"loss": float(step), "samples": Image.new("L", (step, 4))})
    log.close()
    for _ in range(2):  # from the checkpoint of step 30, twice
        log = MetricsLog(tmp_path / "metrics.jsonl", step=30)
        for step in range(40, 70, 10):
            log.write(step, {"loss": -float(step), "samples": Image.new("L", (1, step))})
        log.close()
    expected = [(10, 10.0), (20, 20.0), (30, 30.0), (40, -40.0), (50, -50.0), (60, -60.0)]
    assert curve(tmp_path, "loss") == expected
    assert [(e.step, e.width) for e in read(tmp_path).Images("samples")] == [
        (10, 10), (20, 20), (30, 30), (40, 1), (50, 1), (60, 1)
    ]  # fmt: skip
    assert [
        (row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")
    ] == expected


def test_without_the_package_a_run_is_logged_all_the_same(tmp_path):
    """In a program of its own, where the package cannot be found."""
    code = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
from genjax.training.log import MetricsLog
log = MetricsLog({str(tmp_path / "metrics.jsonl")!r})
log.write(1, {{"loss": 1.0}})
log.close()
import sys
assert not any(name.split(".")[0] in ("tensorboard", "tensorflow") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
