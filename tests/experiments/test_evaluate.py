"""The program that evaluates."""

import json
import shutil

from tests.experiments.launching import run
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config


def test_evaluate_reports_what_it_used(small_run, tmp_path):
    out = tmp_path / "report.json"
    result = run(
        "evaluate", f"--workdir={small_run[0]}", f"--out={out}", "--guidance_scale=0.5",
        "--num_steps=1", "--seed=3", "--weights=params", "--num_samples=400", "--sampler=ddim",
        "--grid=uniform_grid,shift=2.0", "--resamples=3",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    expected = dict(
        guidance_scale=0.5,
        num_steps=1,
        seed=3,
        ema=False,
        num_samples=400,
        sampler="ddim",
        steps=40,
        grid="uniform_grid(shift=2.0)",
    )
    assert {name: report[name] for name in expected} == expected
    low, high = report["frechet_distance_interval"]
    assert low < high and "3 resamples" in report["protocol_of_samples"]["uncertainty"]
    trained = json.loads((small_run[0] / "report.json").read_text())
    for name in ("seconds", "steps_per_second", "frechet_distance_train", "classifier_accuracy"):
        assert report[name] == trained[name]


def test_a_measure_with_a_number_of_its_own_is_named(tmp_path):
    config = small_config()
    config.sampling.num_steps = 1
    config.evaluation.measures = dict(a="Samples", b=dict(name="Samples", num_samples=8))
    folder = random_run(tmp_path / "run", config)
    result = run("evaluate", f"--workdir={folder}", "--num_samples=12")
    assert result.returncode == 0, result.stderr
    (line,) = [each for each in result.stdout.splitlines() if "--num_samples" in each]
    assert line.startswith("  --num_samples: b measured 8 samples, not 12: its config has a number")


def test_what_cannot_be_measured_or_written_is_said_before_sampling(small_run, tmp_path):
    for flag, message in (
        ("--step=30", "--step=30 is not the last checkpoint, 40, whose figures are"),
        ("--num_samples=3", "num_samples is 3, and config.evaluation.measures.samples needs 6"),
        (f"--out={tmp_path / 'absent' / 'report.json'}", "which is not there"),
    ):
        result = run("evaluate", f"--workdir={small_run[0]}", flag)
        assert result.returncode == 1 and message in result.stderr
        assert "sampling" not in result.stderr


def test_a_damaged_report_is_said_before_sampling_and_stays(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    (workdir / "report.json").write_text('{"latent_mean": [0.1')
    result = run("evaluate", f"--workdir={workdir}", "--num_samples=12")
    assert result.returncode == 1 and "report.json is damaged, line 1" in result.stderr
    assert "sampling" not in result.stderr
    assert (workdir / "report.json").read_text() == '{"latent_mean": [0.1'


def test_evaluation_of_the_run_itself_renews_its_page(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    result = run("evaluate", f"--workdir={workdir}", "--guidance_scale=0.125", "--num_steps=1")
    assert result.returncode == 0 and f"  {workdir / 'report.html'}\n" in result.stdout, (
        result.stderr
    )
    assert "<td>0.125</td>" in (workdir / "report.html").read_text(encoding="utf-8")
