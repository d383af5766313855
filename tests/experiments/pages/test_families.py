"""The table of all families: a row for each, from reports alone."""

import json
import re

import pytest
from PIL import Image

from experiments.pages import families
from tests.experiments.launching import ROOT, run

PAGE, RECORDS = ROOT / "docs/results/families.md", ROOT / "docs/results/families"
REPORT = dict(
    steps=663,
    seconds=600.0,
    device="1 × cpu",
    class_accuracy=0.675,
    frechet_distance=15.5,
    frechet_distance_train=8.27,
    parameters=1_280_000,
    evaluations=50,
    milliseconds_per_sample=12.34,
)


def record(folder, name, task="Diffusion", data="fashion_mnist", seed=0, space=None, **figures):
    folder = folder / f"{name}_{seed}"
    folder.mkdir()
    space = space or dict(name="Pixels")
    config = dict(task=task, seed=seed, data=dict(name=data), space=space)
    if task == "Autoencoder":
        config["reconstruction"] = dict(name="l1")
    (folder / "config.json").write_text(json.dumps(dict(config=config, git_commit="c0ffee1234")))
    report = dict(experiment=name) | REPORT | figures
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def rows(text):
    """Return the rows of tables as dictionaries by column."""
    lines = [re.findall(r"(?<=\| )[^|]*(?= \|)", line) for line in text.splitlines() if "|" in line]
    tables, header = [], None
    for line in lines:
        if header is None or len(line) != len(header) or line[0] == "run":
            header = line
        elif set(line[0]) != {"-"}:
            tables.append(dict(zip(header, line, strict=True)))
    return tables


def test_a_row_has_quality_costs_and_what_the_family_is(tmp_path):
    folders = [
        record(tmp_path, "flow"),
        record(tmp_path, "gan", task="GAN", evaluations=1),
        record(tmp_path, "pixels", task="Autoregression", bits_per_dimension=3.21),
        record(tmp_path, "emoji_text", data="emoji", class_accuracy=None),
    ]
    table = families.read_rows(folders)
    assert list(table) == ["fashion_mnist", "emoji"]
    flow, gan, pixels, *origins = rows(families.families(dict(fashion=table["fashion_mnist"])))
    assert flow["accuracy ↑"] == "67.5 %" and flow["Fréchet distance ↓"] == "15.5 (8.27)"
    assert flow["parameters"] == "1,280,000" and flow["training"] == "10 min 0 s"
    assert (flow["evaluations"], flow["ms per sample"]) == ("50", "12.3")
    assert (flow["exact density"], flow["latent code"]) == ("by an ODE", "no")
    assert (gan["exact density"], gan["latent code"], gan["evaluations"]) == ("no", "yes", "1")
    assert (pixels["exact density"], pixels["bits per dimension ↓"]) == ("yes", "3.21")
    assert [each["commit"] for each in origins] == ["`c0ffee1`"] * 3
    assert origins[0]["steps, time"] == "663 in 10 min 0 s"


def test_a_latent_flow_has_the_time_and_the_parameters_of_its_autoencoder(tmp_path):
    autoencoder = record(tmp_path, "autoencoder", task="Autoencoder", seconds=120.0)
    space = dict(name="Latents", run="runs/autoencoder_0")
    flow = record(tmp_path, "latent_flow", space=space, decoder_parameters=333_000)
    (row,) = rows(families.families(families.read_rows([autoencoder, flow])))[:1]
    assert row["run"] == "`latent_flow`"
    assert row["training"] == "10 min 0 s + 2 min 0 s"
    assert row["parameters"] == "1,280,000 + 333,000"
    assert (row["exact density"], row["latent code"]) == ("no", "yes")


def test_seeds_of_one_length_are_one_row(tmp_path):
    distances = {0: 14.0, 1: 15.0, 2: 16.0}
    folders = [
        record(tmp_path, "flow", seed=seed, frechet_distance=value)
        for seed, value in distances.items()
    ]
    longer = record(tmp_path, "flow", seed=3, steps=4000)
    several, one = rows(families.families(families.read_rows([*folders, longer])))[:2]
    assert several["Fréchet distance ↓"] == "15.0 ± 1.00"  # by hand
    assert one["Fréchet distance ↓"] == "15.5 (8.27)"


def test_captions_are_the_accuracy_of_prompts(tmp_path):
    folder = record(tmp_path, "text", training_accuracy=0.81, training_accuracy_real=0.95)
    report = json.loads((folder / "report.json").read_text())
    del report["class_accuracy"]
    (folder / "report.json").write_text(json.dumps(report))
    row = rows(families.families(families.read_rows([folder])))[0]
    assert row["accuracy ↑"] == "81.0 % (95.0 %)"


def test_the_command_fills_the_page_between_its_marks_and_draws_pictures(tmp_path):
    folders = [record(tmp_path, name) for name in ("flow", "gan")]
    for folder, colour in zip(folders, ("red", "blue"), strict=True):
        Image.new("RGB", (650, 650), colour).save(folder / "samples.png")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{families.BEGIN}\nold\n{families.END}\nafter\n")
    options = ["--families", f"--out={page}", f"--pictures={tmp_path / 'pictures'}"]
    result = run("table", *map(str, folders), *options)
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "`flow`" in text and "`gan`" in text
    sheet = Image.open(tmp_path / "pictures/fashion_mnist_samples.png")
    assert sheet.size == (2 * families.WIDTH, families.TITLE + families.WIDTH)
    middle = families.TITLE + families.WIDTH // 2
    colours = [sheet.getpixel((x, middle)) for x in (200, 600)]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert (tmp_path / "pictures/fashion_mnist_cost.png").exists()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no lines"):
        families.insert("a page", "a table")
    folder = record(tmp_path, "flow")
    result = run("table", str(folder), f"--pictures={tmp_path}")
    assert result.returncode == 1 and "--families" in result.stderr
    (folder / "report.json").unlink()
    with pytest.raises(ValueError, match="no report.json"):
        families.read_rows([folder])


def test_the_page_is_that_of_its_records():
    """After a change of a record, write the page anew by the command on it."""
    page = PAGE.read_text()
    records = sorted(RECORDS.iterdir()) if RECORDS.exists() else []
    assert page == families.insert(page, families.families(families.read_rows(records)))
