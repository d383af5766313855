"""The program that measures a run by sampler and number of steps."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import moving_digits_video
from experiments.configuration import runs
from experiments.evaluation import sampling_sweep
from experiments.evaluation.sampling_sweep import check
from experiments.inputs.conditions import Unconditional
from experiments.pages import heat_maps
from experiments.tasks.diffusion import Diffusion
from tests.experiments.launching import SMALL, run, shared_run


def test_a_sweep_measures_as_evaluation_does(small_run, tmp_path):
    out = tmp_path / "sweep.json"
    result = run(
        "sweep",
        small_run[0],
        "--samplers=euler ddim",
        "--steps=1,4",
        "--num_samples=360",
        f"--out={out}",
    )
    assert result.returncode == 0, result.stderr
    records = json.loads(out.read_text())
    assert [(r["sampler"], r["num_steps"], r["evaluations"]) for r in records] == [
        ("euler", 1, 1), ("euler", 4, 4), ("ddim", 1, 1), ("ddim", 4, 4)
    ]  # fmt: skip
    report = json.loads((small_run[0] / "report.json").read_text())  # of 4 Euler steps
    for name in ("class_accuracy", "frechet_distance", "guidance_scale", "weights"):
        assert records[1][name] == report[name]
    row = (
        f"| digits_flow | euler | {{}} | {report['frechet_distance']:.3g} / "
        f"{100 * report['class_accuracy']:.1f} % |"
    )
    first = f"{records[0]['frechet_distance']:.3g} / {100 * records[0]['class_accuracy']:.1f} %"
    assert row.format(first) in result.stdout
    result = run("sweep", small_run[0], "--samplers=euler,x", f"--out={out}")
    assert result.returncode == 1 and "name,option=1.5" in result.stderr


@pytest.mark.slow
def test_a_sweep_over_averages_and_guidance_finds_the_best(tmp_path_factory, tmp_path, monkeypatch):
    averages = {"narrow": 0.05, "wide": 0.1}
    flags = [
        f"--config.averages.{name}={{'name':'PowerFunction','width':{width}}}"
        for name, width in averages.items()
    ]
    small = [*SMALL, *flags, "--config.snapshot_every=10"]
    folder, _ = shared_run(tmp_path_factory, "small_power", *small)
    out = tmp_path / "guidance.json"
    flags = ["--widths=0.05,0.2", "--scales=1,3", "--intervals=-1:2,0.4:0.6", "--num_samples=360"]
    traced, generate = [], Diffusion.generate

    def counted(*args, weights, **named):
        traced.append(weights)
        return generate(*args, weights=weights, **named)

    monkeypatch.setattr(Diffusion, "generate", counted)
    result = run("sweep", folder, *flags, f"--out={out}")
    monkeypatch.undo()
    assert result.returncode == 0, result.stderr
    records = json.loads(out.read_text())
    swept, again = records[:8], records[8:]
    settings = [(r["weights"], r["guidance_scale"], *r["guidance_interval"]) for r in swept]
    scales = [(1.0, -1.0, 2.0), (1.0, 0.4, 0.6), (3.0, -1.0, 2.0), (3.0, 0.4, 0.6)]
    assert settings == [(f"posthoc_{w}", *each) for w in ("0.05", "0.2") for each in scales]
    distances = [record["frechet_distance"] for record in swept]
    assert distances[0] == distances[1]  # without guidance its interval does not matter
    assert len(set(distances)) == 6
    verdicts = ["best"] * 3 + ["own"] * 3 + ["worst"] * 3
    assert [record["verdict"] for record in again] == verdicts
    assert [record["seed"] for record in again] == [1, 2, 3] * 3
    for verdict, choose in (("best", min), ("worst", max)):
        chosen = swept[distances.index(choose(distances))]
        same = next(record for record in again if record["verdict"] == verdict)
        for name in ("weights", "guidance_scale", "guidance_interval"):
            assert same[name] == chosen[name]
    assert [again[3][name] for name in ("weights", "guidance_scale")] == ["ema", 1.25]
    means = [np.mean([r["frechet_distance"] for r in again[i : i + 3]]) for i in (0, 3, 6)]
    assert f"{means[2] / means[0]:.2f} |" in result.stdout.splitlines()[-1]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 300
    assert traced == ["swept", "ema"]  # one program for all combinations, and one for the run's own

    # The same setting by the flags of `evaluate`.
    report = tmp_path / "report.json"
    flags = ["--weights=posthoc_0.2", "--guidance_scale=3", "--guidance_interval=0.4:0.6"]
    result = run("evaluate", f"--workdir={folder}", *flags, f"--out={report}")
    assert result.returncode == 0, result.stderr
    found = json.loads(report.read_text())
    assert found["frechet_distance"] == pytest.approx(distances[7])
    protocol = found["protocol_of_samples"]
    assert protocol["average"] == "PowerFunction(width=0.2)"
    assert protocol["sampling"]["guidance_interval"] == [0.4, 0.6]


def test_the_state_of_a_run_is_read_once_for_all_samplers(tmp_path, monkeypatch):
    read, states = [], []

    class Opened:
        def __init__(self, workdir, **sampling):
            self.workdir, self.sampler = workdir, sampling["sampler"]["name"]

        @property
        def state(self):
            read.append(self.workdir)
            return f"of {self.workdir}"

    def measured(run, state, *_, num_steps):
        states.append((run.workdir, run.sampler, num_steps, state))
        made = dict(workdir=run.workdir, sampler=run.sampler, num_steps=num_steps)
        return made | dict(experiment="flow", frechet_distance=1.0)

    monkeypatch.setattr(runs, "open_run", Opened)
    monkeypatch.setattr(sampling_sweep, "check", lambda *_: None)
    monkeypatch.setattr(sampling_sweep, "measure", measured)
    flags = ["--samplers=euler ddim", "--steps=1,2", f"--out={tmp_path / 'a.json'}"]
    assert run("sweep", "runs/a", "runs/b", *flags).returncode == 0
    assert read == ["runs/a", "runs/b"]
    combinations = itertools.product(read, ["euler", "ddim"], [1, 2])
    assert states == [(*each, f"of {each[0]}") for each in combinations]


def test_a_run_without_a_condition_is_measured_without_guidance(tmp_path, monkeypatch):
    """All scales and intervals would give the same samples."""
    asked, opened = [], SimpleNamespace(task=SimpleNamespace(condition=Unconditional()))
    monkeypatch.setattr(runs, "open_run", lambda *_, **changes: opened)
    monkeypatch.setattr(sampling_sweep, "check", lambda *_: None)
    swept = lambda own, run, *combinations: asked.append(combinations[:3]) or []
    monkeypatch.setattr(sampling_sweep, "sweep_guidance", swept)
    monkeypatch.setattr(sampling_sweep, "describe_verdicts", lambda records: "")
    picture = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(heat_maps, "draw_heat_maps", lambda records: picture)
    flags = ["--widths=0.1,0.2", f"--out={tmp_path / 'a.json'}"]
    assert run("sweep", "runs/a", *flags).returncode == 0
    assert asked == [([0.1, 0.2], [1.0], [(0.0, 1.0)])]
    result = run("sweep", "runs/a", *flags, "--scales=1,2")
    assert result.returncode == 1
    assert "--scales is of guidance, and runs/a has no condition: leave it out" in result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--scales=1,2"], "--scales needs --widths: give both"),
        (["--widths=0.1", "--steps=4"], "--steps is not for --widths: leave out one of them"),
    ],
)
def test_flags_that_nothing_would_read_are_refused(given, message):
    result = run("sweep", "runs/a", *given, "--out=a.json")
    assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--widths=0.1", "--intervals=0:1,0.8:0.2", "--out=a.json"], "--intervals=0.8:0.2 must"),
        (["--widths=0.1", "--intervals=0.2,0.8", "--out=a.json"], "0.2 must be LOW:HIGH, as 0.2:"),
        (["--out=absent/a.json"], "--out=absent/a.json needs the folder"),
        (["--widths=0.1", "--out=a.png"], "--out=a.png must end in .json"),
    ],
)
def test_mistakes_are_named_before_a_run_is_opened(given, message, monkeypatch):
    monkeypatch.setattr(runs, "open_run", None)
    result = run("sweep", "runs/a", *given)
    assert result.returncode == 1 and message in result.stderr


def test_a_run_of_video_is_refused():
    of_video = SimpleNamespace(folder="runs/video", config=moving_digits_video.get_config())
    with pytest.raises(ValueError, match="runs/video is a run of video, and a sweep measures im"):
        check(of_video)
