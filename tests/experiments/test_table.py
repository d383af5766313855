"""Tables of runs: every figure is the one in the run's report."""

import json
import re
from pathlib import Path

import pytest

from experiments.pages.tables import HEADER, number, tables
from tests.experiments.launching import ROOT, run

RECORDS = sorted((ROOT / "docs/results/records").iterdir())
REPORT = dict(
    experiment="a_flow",
    steps=5000,
    seconds=110.6,
    device="1 × cpu (2 cores)",
    class_accuracy=0.997,
    classifier_accuracy=0.9944,
    frechet_distance=0.82887,
    frechet_distance_train=0.71764,
    recall=0.72917,
    num_samples=1000,
    sampler="p(x|z)",
    num_steps=50,
    guidance_scale=1.25,
    steps_per_second=48.0,
)


def make_record(folder: Path, task="Diffusion", commit="c0ffee1234", data=None, **changes) -> Path:
    folder.mkdir()
    config = dict(task=task) | (dict(data=data) if data else {})
    record = dict(config=config, device="1 × cpu", git_commit=commit)
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "report.json").write_text(json.dumps(REPORT | changes))
    return folder


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_a_figure_has_three_digits_and_never_an_exponent_for_a_thousand():
    values = 0.0, -0.00664, 82.0, 999.4, 999.6, 1234.5
    shown = [number("frechet_distance", value) for value in values]
    assert shown == ["0.00", "−0.00664", "82.0", "999", "1,000", "1,234"]


def test_a_row_says_figures_budget_hardware_and_commit(tmp_path):
    header, _, row, how, _, origin = rows(tables([make_record(tmp_path / "a")]))
    assert dict(zip(header, row, strict=True)) == {
        "run": "`a_flow`",
        "class accuracy ↑": "99.7 % (99.4 %)",
        "Fréchet distance ↓": "0.829 (0.718)",
        "recall ↑": "0.729",
    }
    assert dict(zip(how, origin, strict=True)) == {
        "run": "`a_flow`",
        "steps, time": "5,000 in 1 min 50 s",
        "device": "1 × cpu (2 cores)",
        "commit": "`c0ffee1`",
        "sampling": "1,000 samples; p(x\\|z), 50 steps; guidance scale 1.25",
    }


def test_families_have_tables_of_their_own_and_a_missing_figure_is_an_empty_cell(tmp_path):
    runs = [
        make_record(tmp_path / "a"),
        make_record(tmp_path / "b", task="GAN", commit="abcdef0123-dirty"),
        make_record(tmp_path / "c", fid=195.0, elbo=-83.0),
    ]
    text = tables(runs)
    assert re.findall(r"^## (.+)", text, re.MULTILINE) == ["Diffusion", "GAN"]
    header, _, first, second = rows(text)[:4]
    assert [first[header.index("fid ↓")], second[header.index("fid ↓")]] == ["", "195"]
    assert second[header.index("elbo ↑")] == "−83.0"
    assert rows(text)[-1][3] == "`abcdef0`, with changes"


def test_each_data_set_has_a_table_of_its_figures(tmp_path):
    folders = [
        make_record(tmp_path / "a", data=dict(name="digits"), psnr=20.0),
        make_record(tmp_path / "b", data=dict(name="emoji"), elbo=-83.0),
        make_record(tmp_path / "c", data=dict(name="digits"), experiment="another"),
    ]
    digits, emoji, _ = (rows(part) for part in tables(folders).split("\n\n")[1:])
    assert [row[0] for row in digits] == ["run", "---", "`a_flow` in `a`", "`another`"]
    assert [row[0] for row in emoji] == ["run", "---", "`a_flow` in `b`"]
    assert "psnr ↑" in digits[0] and "psnr ↑" not in emoji[0] and "elbo ↑" in emoji[0]


def test_runs_of_one_experiment_are_told_apart_by_their_folders(tmp_path):
    runs = [make_record(tmp_path / "a", fid=1366.99), make_record(tmp_path / "b")]
    header, _, first, second = rows(tables(runs))[:4]
    assert [first[0], second[0]] == ["`a_flow` in `a`", "`a_flow` in `b`"]
    assert first[header.index("fid ↓")] == "1,367"


def test_figures_by_number_of_steps_have_a_table(tmp_path):
    figures = {"class_accuracy_at_1": 0.981, "frechet_distance_at_1": 1.2, "recall_at_1": 0.61}
    runs = [
        make_record(tmp_path / "a", **figures, class_accuracy_at_4=0.99),
        make_record(tmp_path / "b"),
    ]
    text = tables(runs)
    header, _, row, after = rows(text[text.index("by number of steps") :])[:4]
    assert header == ["run", "1 step", "4 steps"]
    assert row == ["`a_flow` in `a`", "98.1 % / 1.20 / 0.610", "99.0 % / – / –"]
    assert after[0] == "run"  # the other run has no such figures
    assert "by number of steps" not in tables(runs[1:])


def test_the_page_of_results_is_that_of_the_records():
    """After a change of a record, write the page anew by the command at its top."""
    page = (ROOT / "docs/results/runs.md").read_text()
    assert page == HEADER + tables(RECORDS)


def test_a_folder_that_is_no_run_or_not_evaluated_is_an_error(tmp_path):
    record = make_record(tmp_path / "a")
    (record / "report.json").unlink()
    for folder, message in ((record, "report.json"), (tmp_path / "none", "no run"), ("", "name")):
        result = run("table", *([folder] if folder else []))
        assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("absent/a.md", [], "absent/a.md needs the folder"),
        ("a.md", ["--families"], "a.md is not there; with --families it is a page with the lines"),
    ],
)
def test_a_page_that_cannot_be_written_is_an_error(out, flags, message, tmp_path):
    record = make_record(tmp_path / "a", data=dict(name="digits"))
    result = run("table", record, f"--out={tmp_path / out}", *flags)
    assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_a_record_names_no_machine(record):
    text = "".join(path.read_text() for path in record.iterdir())
    assert not re.search(r"\"/(home|root|tmp|work|Users)/", text)
