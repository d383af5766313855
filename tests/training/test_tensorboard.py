"""Event files as TensorBoard itself reads them."""

import io

import numpy as np
import pytest
from PIL import Image

from genjax.training.log import MetricsLog, read_metrics
from genjax.training.pictures import image_grid
from genjax.training.writers import TensorBoard

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    accumulator = accumulators.EventAccumulator(
        str(folder), size_guidance={"images": 0}
    )  # all of them
    accumulator.Reload()
    return accumulator


def open_log(folder, step=0):
    return MetricsLog(folder / "metrics.jsonl", step, [TensorBoard().open(folder, step, {})])


def curve(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_numbers_and_pictures_come_back(tmp_path):
    picture = image_grid(
        np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), columns=2
    )
    log = open_log(tmp_path)
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
    log = open_log(tmp_path)
    for step in range(10, 60, 10):
        log.write(step, {"loss": float(step), "samples": Image.new("L", (step, 4))})
    log.close()
    for _ in range(2):  # from the checkpoint of step 30, twice
        log = open_log(tmp_path, step=30)
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
