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
    classifier_accuracy=0.851,
    frechet_distance=15.5,
    frechet_distance_train=8.27,
    parameters=1_280_000,
    evaluations=50,
    milliseconds_per_sample=12.34,
)


def record(folder, name, task="Diffusion", data="fashion_mnist", seed=0, **fields):
    """Write a record. `figures` are entries of its report, and other fields are of its config."""
    figures, folder = fields.pop("figures", {}), folder / f"{name}_{seed}"
    folder.mkdir()
    config = dict(task=task, seed=seed, data=dict(name=data), space=dict(name="Pixels"))
    config |= dict(condition=dict(name="Classes")) | fields
    if task == "Autoencoder":
        config["reconstruction"] = dict(name="l1")
    (folder / "config.json").write_text(json.dumps(dict(config=config, git_commit="c0ffee1234")))
    report = dict(experiment=f"fashion_families_{name}") | REPORT | figures
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def tables(text):
    """Return the tables of a text, each a list of rows as dictionaries by column."""
    found, header = [], None
    for line in text.splitlines():
        cells = [each.strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            header = None
        elif header is None:
            header = cells
            found.append([])
        elif set(cells[0]) != {"-"}:
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


def tables_of(*folders):
    return tables(families.families(families.read_rows(folders)))


def test_a_row_has_quality_costs_and_what_the_family_is(tmp_path):
    quality, costs, origins = tables_of(
        record(tmp_path, "flow"),
        record(tmp_path, "gan", task="GAN", figures=dict(evaluations=1, frechet_distance=1380.4)),
        record(tmp_path, "pixels", task="Autoregression", figures=dict(bits_per_dimension=3.21)),
    )
    flow, gan, pixels, real = quality
    assert (flow["family"], flow["condition"]) == ("flow", "class")
    assert flow["class accuracy ↑"] == "67.5 %" and flow["Fréchet distance ↓"] == "15.5"
    assert (gan["family"], gan["Fréchet distance ↓"]) == ("GAN", "1,380")
    assert pixels["bits per dimension ↓"] == "3.21" and flow["bits per dimension ↓"] == ""
    assert (real["class accuracy ↑"], real["Fréchet distance ↓"]) == ("85.1 %", "8.27")
    assert "caption accuracy ↑" not in flow  # no row has it
    flow, gan, pixels = costs
    assert flow["parameters"] == "1,280,000" and flow["training"] == "10 min 0 s"
    assert (flow["evaluations"], flow["ms per sample"]) == ("50", "12.3")
    assert (flow["exact density"], flow["latent code"]) == ("by an ODE", "no")
    assert (gan["exact density"], gan["latent code"], gan["evaluations"]) == ("no", "yes", "1")
    assert pixels["exact density"] == "yes"
    assert [each["commit"] for each in origins] == ["`c0ffee1`"] * 3
    assert origins[0]["run"] == "`fashion_families_flow`"
    assert origins[0]["steps, time"] == "663 in 10 min 0 s"


def test_a_student_has_the_times_of_its_teacher_and_of_their_autoencoder(tmp_path):
    autoencoder = record(tmp_path, "autoencoder", task="Autoencoder", figures=dict(seconds=120.0))
    latents = dict(space=dict(name="Latents", run="runs/autoencoder_0"))
    flow = record(tmp_path, "flow", figures=dict(decoder_parameters=333_000), **latents)
    student = record(tmp_path, "student", task="Distillation", teacher="runs/flow_0", **latents)
    _, costs, _ = tables_of(autoencoder, flow, student)
    assert [row["family"] for row in costs] == ["flow", "student"]
    assert costs[0]["training"] == "10 min 0 s + 2 min 0 s"
    assert costs[0]["parameters"] == "1,280,000 + 333,000"
    assert (costs[0]["exact density"], costs[0]["latent code"]) == ("no", "yes")
    assert costs[1]["training"] == "10 min 0 s + 10 min 0 s + 2 min 0 s"


def test_seeds_of_one_length_are_one_row_with_an_interval(tmp_path):
    distances = {0: 14.0, 1: 15.0, 2: 16.0}
    busier = {2: dict(seconds=1500.0, milliseconds_per_sample=30.0)}  # the same work
    folders = [
        record(
            tmp_path,
            "flow",
            seed=seed,
            figures=dict(frechet_distance=value, **busier.get(seed, {})),
            space=dict(
                name="Latents",
                run=f"runs/autoencoder_{seed}",
                directory=f"runs/latents_{seed}",
            ),
        )
        for seed, value in distances.items()
    ]
    longer = record(tmp_path, "flow", seed=3, figures=dict(steps=4000))
    guided = record(tmp_path, "flow", seed=4, sampling=dict(guidance_scale=3.0))
    (several, one, other, _), costs, *_ = tables_of(*folders, longer, guided)
    assert (costs[0]["training"], costs[0]["ms per sample"]) == ("10 min 0 s", "12.3")
    # Student's quantile of 97.5 % with two degrees of freedom, over √3
    assert several["Fréchet distance ↓"] == f"15.0 ± {4.30265 / 3**0.5:.2f}"
    assert one["Fréchet distance ↓"] == other["Fréchet distance ↓"] == "15.5"


def test_data_and_budgets_have_tables_of_their_own(tmp_path):
    captions = dict(
        training_accuracy=0.81,
        training_accuracy_real=0.95,
        held_out_accuracy=0.52,
        held_out_accuracy_real=0.7,
    )
    prompts = dict(condition=dict(name="Prompts"), data="emoji", figures=captions)
    folders = [
        record(tmp_path, "text", **prompts),
        record(tmp_path, "flow", seed=0),
        record(tmp_path, "flow", seed=1, figures=dict(seconds=1500.0, steps=4000)),
    ]
    text = families.families(families.read_rows(folders), "pictures")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "## Fashion-MNIST",
        "### Fashion-MNIST, 10 minutes of training",
        "### Fashion-MNIST, 1 hour of training",
        "## Captioned emoji",
        "### Captioned emoji, 10 minutes of training",
    ]
    row, real = tables(text)[6]
    assert row["condition"] == "caption" and row["caption accuracy ↑"] == "81.0 %"
    assert row["held-out captions ↑"] == "52.0 %" and real["held-out captions ↑"] == "70.0 %"
    assert "](pictures/emoji_cost.png)" in text and "emoji_10_minutes" not in text  # no samples


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
    assert "| GAN |" in text and "`fashion_families_gan`" in text
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert links == ["pictures/fashion_mnist_cost.png", "pictures/fashion_mnist_10_minutes.png"]
    with Image.open(tmp_path / links[0]) as figure:
        assert figure.width > 500
    sheet = Image.open(tmp_path / links[1])
    assert sheet.size == (2 * families.WIDTH + families.GAP, families.TITLE + families.WIDTH)
    middle = families.TITLE + families.WIDTH // 2
    colours = [sheet.getpixel((x, middle)) for x in (200, 600)]
    assert colours == [(255, 0, 0), (0, 0, 255)]


def test_a_budget_has_one_marker_and_is_named_once(tmp_path, monkeypatch):
    """Also if a panel lacks a budget that the other one has."""
    drawn = []
    monkeypatch.setattr(families, "rendered", drawn.append)
    folders = [
        record(tmp_path, "flow", figures=dict(fd_vgg16=2.0)),
        record(tmp_path, "gan", figures=dict(fd_vgg16=1.0, seconds=3600.0)),
    ]
    report = folders[0] / "report.json"
    figures = json.loads(report.read_text())
    del figures["frechet_distance"]
    report.write_text(json.dumps(figures))
    (rows,) = families.read_rows(folders).values()
    families.cost_figure(rows)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["10 minutes", "1 hour"]
    of_panel = [
        [len(points.get_paths()[0]) for points in axes.collections] for axes in drawn[0].axes
    ]
    (circle, square), of_legend = (
        of_panel[1],
        [len(h.get_paths()[0]) for h in legend.legend_handles],
    )
    assert circle != square and of_legend == [circle, square]  # by their number of vertices
    assert of_panel[0][0] == square


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
    text = families.families(families.read_rows(records), "../pictures")
    assert page == families.insert(page, text)
