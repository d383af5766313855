"""Distances by the choices of a protocol, of pictures in which their effect is known."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation import protocol_choices
from genjax import metrics
from tests.experiments.launching import ROOT, run

RECORDS = sorted((ROOT / "docs/results/protocols").glob("*.json"))


@pytest.fixture(scope="module")
def images():
    """Two sets of pictures with fine detail: noise over a gradient."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 128, (2, 60, 12, 12, 1))
    return (noise + np.arange(12)[:, None, None] * 10).astype(np.uint8)


def flat(values):
    return np.asarray(values, np.float64).reshape(len(values), -1)[:, ::5] / 255


def test_choices_are_made_for_samples_alone_and_for_both_sets(images):
    """At a third of the side, bilinear interpolation takes single pixels: 0, 3, … or 1, 4, …."""
    rows = protocol_choices.measure_choices(*images, 4, flat)
    (usual, also), *_ = rows.values()
    assert usual == also  # the first choice is the reference's
    fixed = flat(protocol_choices.antialiased(images[1], 4))
    for name, first in (
        ("TensorFlow 1's bilinear (FID, torch-fidelity)", 0),
        ("bilinear, not antialiased (pytorch-fid)", 1),
    ):
        taken = [flat(each[:, first::3, first::3]) for each in images]
        alone, both = rows[name]
        assert alone == pytest.approx(metrics.frechet_distance(taken[0], fixed), rel=1e-4)
        assert both == pytest.approx(metrics.frechet_distance(*taken), rel=1e-4)
        assert alone > 2 * usual  # aliasing leaves noise that the reference has not
    assert rows["rounded to uint8 after resizing"][0] == pytest.approx(usual, rel=0.02)
    assert rows["JPEG of quality 75"][0] != rows["JPEG of quality 95"][0]
    table = protocol_choices.markdown(rows).splitlines()
    assert len(table) == 2 + len(rows) and "(+0.0 %)" in table[2] and "clean-fid" in table[2]


def test_a_choice_is_what_its_name_says(images):
    picture = images[0, 0]
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, "JPEG", quality=75)
    stored = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    np.testing.assert_array_equal(protocol_choices.jpeg(images[0], 75)[0, ..., 0], stored)
    np.testing.assert_array_equal(protocol_choices.unrounded(images[0]).round(), images[0])
    floats = Image.fromarray(picture[..., 0].astype(np.float32)).resize((6, 6), Image.BICUBIC)
    ours = protocol_choices.antialiased(images[0], 6)[0, ..., 0]
    np.testing.assert_allclose(ours, np.asarray(floats).clip(0, 255), atol=2e-3)


def test_numbers_of_images():
    generator = np.random.default_rng(0)
    sets = generator.integers(0, 256, (2, 300, 8, 8, 1)).astype(np.uint8)
    found = protocol_choices.measure_counts(*sets)
    assert list(found) == ["9", "18", "37", "75", "150", "300", "∞", "95 % from", "95 % to"]
    half = sets[:, :150].reshape(2, 150, -1) / 127.5 - 1
    assert found["150"] == pytest.approx(metrics.frechet_distance(*half), rel=1e-4)
    assert abs(found["∞"]) < found["300"] / 2 < found["150"]  # equal distributions: all is bias
    assert (
        list(protocol_choices.measure_counts(*sets[:, :100]))[-1] == "100"
    )  # too few for the line


def test_the_program_records_the_weights(images, tmp_path, monkeypatch):
    """The digest is that of published reports."""
    monkeypatch.setattr(protocol_choices, "images_of", lambda name, split: images[0])
    monkeypatch.setattr(protocol_choices, "measure_choices", lambda *inputs: {"a": (1.0, 1.0)})
    result = run("protocols", "--num_images=4", f"--out={tmp_path}/a.json")
    assert result.returncode == 0, result.stderr
    reports = (ROOT / "docs/results/records").glob("*/report.json")
    published = {
        measure["features"]["vgg16"]["parameters_sha256"]
        for report in reports
        for name, measure in json.loads(report.read_text()).items()
        if name.startswith("protocol_of_") and "vgg16" in measure["features"]
    }
    record = json.loads((tmp_path / "a.json").read_text())
    assert {record["parameters_sha256"]} == published


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_the_guide_has_the_table_of_the_record(record):
    """After a change of a record, put the table that the command prints into the guide."""
    report = json.loads(record.read_text())
    guide = (ROOT / "docs/guides/evaluation.md").read_text()
    assert protocol_choices.markdown(report["choices"]) in guide
    assert f"--side={report['side']} --num_images={report['num_images'][0]}" in guide


def test_there_is_a_record():
    assert RECORDS
