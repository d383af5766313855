"""The programs as a user starts them."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import SMALL, program
from PIL import Image

REPORTED = {
    "experiment", "steps", "seconds", "steps_per_second", "device", "class_accuracy", "frechet_distance",
    "frechet_distance_train", "precision", "recall", "nearest_neighbour_ratio", "num_samples", "sampler",
    "num_steps", "guidance_scale", "ema", "seed",
}  # fmt: skip


def test_a_run_leaves_what_it_promises(small_run):
    workdir, result = small_run
    report = json.loads((workdir / "report.json").read_text())
    assert report.keys() >= REPORTED
    assert (report["steps"], report["num_samples"], report["ema"]) == (40, 360, True)
    assert report["classifier_accuracy"] >= 0.98
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["model"]["width"] == 32
    assert record["versions"]["jax"] and record["device"] and "git_commit" in record
    assert record["attention"] == "plain: 64 × 16 queries, 16 keys, 2 heads of 16"
    assert record["attention"] in (workdir / "report.html").read_text()
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40]
    assert sorted(p.name for p in (workdir / "samples").iterdir()) == ["step_000020.png", "step_000040.png"]
    with Image.open(workdir / "samples.png") as image:
        assert image.size == (2 * 34, 10 * 34)  # a row per class
    with Image.open(workdir / "noise_to_data.gif") as animation:
        assert animation.n_frames == 5
    with Image.open(workdir / "curves.png") as image:
        assert image.size[0] > 500
    for name in ("samples.png", "noise_to_data.gif", "curves.png", "report.json", "report.html"):
        assert (workdir / name).exists()
        assert str(workdir / name) in result.stdout


def test_a_run_of_many_classes_shows_some(tmp_path):
    """Forty classes, from folders: every second one has a row."""
    random = np.random.default_rng(0)
    for i in range(40 * 5):
        folder = tmp_path / "images" / ("test" if i < 40 else "train") / f"{i % 40:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    result = program(
        "train", *SMALL, f"--workdir={tmp_path / 'run'}", "--config.data.name=folder", "--config.num_steps=6",
        f"--config.data.directory={tmp_path / 'images'}", "--config.data.image_shape=8,8,3",
        "--config.data.num_classes=40", "--config.sampling.batch_size=16", "--config.evaluation.num_samples=40",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for name in "samples.png", "noise_to_data.gif":
        with Image.open(tmp_path / "run" / name) as image:
            assert image.size == (2 * 34, 20 * 34)
    result = program("sample", f"--workdir={tmp_path / 'run'}", "--count=1", f"--out={tmp_path / 'a.npz'}")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["labels"], np.arange(0, 40, 2))


def test_nothing_but_progress_is_printed(small_run):
    """No warnings, no commentary of libraries."""
    _, result = small_run
    assert all(line.startswith("step ") for line in result.stderr.splitlines() if line), result.stderr


def test_the_same_command_again_trains_no_further(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_text()
    result = program("train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert (workdir / "metrics.jsonl").read_text() == before
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (small_run[0], workdir))
    assert a == b


def test_sample_takes_classes_count_steps_scale_and_seed(small_run, tmp_path):
    def sample(*flags, out):
        result = program("sample", f"--workdir={small_run[0]}", f"--out={tmp_path / out}", *flags)
        assert result.returncode == 0, result.stderr
        return result

    sample("--classes=3,7", "--count=4", "--seed=5", "--num_steps=2", "--guidance_scale=2", out="a.npz")
    a = np.load(tmp_path / "a.npz")
    assert a["images"].shape == (8, 8, 8, 1) and a["images"].dtype == np.uint8
    np.testing.assert_array_equal(a["labels"], [3] * 4 + [7] * 4)
    # sample i depends on its own index, class and seed: not on how many there are
    sample("--classes=3", "--count=2", "--seed=5", "--num_steps=2", "--guidance_scale=2", out="b.npz")
    difference = np.load(tmp_path / "b.npz")["images"].astype(int) - a["images"][:2]
    assert np.abs(difference).max() <= 1  # another batch size may round a float differently
    result = sample("--count=3", "--step=30", "--weights=params", out="c.png")
    assert "step 30" in result.stdout and "weights params" in result.stdout
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (3 * 34, 10 * 34)


def test_what_was_compiled_is_kept_for_the_next_program(small_run, tmp_path):
    """In the cache of the user, each file written once by the first program and none by the second."""
    options = dict(XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def kept_after(*flags):
        flags = [f"--workdir={small_run[0]}", f"--out={tmp_path}/a.png", *flags]
        result = program("sample", *flags, env=environment | options)
        assert result.returncode == 0, result.stderr
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("genjax/compilations/*-cache")}

    first = kept_after("--count=1")
    assert any(name.startswith("jit_generate") for name in first)
    assert kept_after("--count=1", "--seed=3") == first
    assert kept_after("--count=2").keys() > first.keys()  # of another shape


def test_evaluate_reports_what_it_used(small_run, tmp_path):
    out = tmp_path / "report.json"
    result = program(
        "evaluate", f"--workdir={small_run[0]}", f"--out={out}", "--guidance_scale=0.5", "--num_steps=1",
        "--seed=3", "--weights=params", "--num_samples=400", "--sampler=ddim", "--grid=uniform_grid,shift=2.0",
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
    trained = json.loads((small_run[0] / "report.json").read_text())
    for name in ("seconds", "steps_per_second", "frechet_distance_train", "classifier_accuracy"):
        assert report[name] == trained[name]


def test_evaluation_of_the_run_itself_renews_its_page(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    result = program("evaluate", f"--workdir={workdir}", "--guidance_scale=0.125", "--num_steps=1")
    assert result.returncode == 0 and f"  {workdir / 'report.html'}\n" in result.stdout, result.stderr
    assert "<td>0.125</td>" in (workdir / "report.html").read_text(encoding="utf-8")


def test_a_sweep_measures_as_evaluation_does(small_run, tmp_path):
    out = tmp_path / "sweep.json"
    result = program(
        "sweep", small_run[0], "--samplers=euler ddim", "--steps=1,4", "--num_samples=360", f"--out={out}"
    )
    assert result.returncode == 0, result.stderr
    records = json.loads(out.read_text())
    assert [(r["sampler"], r["num_steps"], r["evaluations"]) for r in records] == [
        ("euler", 1, 1), ("euler", 4, 4), ("ddim", 1, 1), ("ddim", 4, 4)
    ]  # fmt: skip
    report = json.loads((small_run[0] / "report.json").read_text())  # of 4 Euler steps
    for name in ("class_accuracy", "frechet_distance", "guidance_scale", "weights"):
        assert records[1][name] == report[name]
    row = f"| digits_flow | euler | {{}} | {report['frechet_distance']:.3g} / {100 * report['class_accuracy']:.1f} % |"
    first = f"{records[0]['frechet_distance']:.3g} / {100 * records[0]['class_accuracy']:.1f} %"
    assert row.format(first) in result.stdout
    result = program("sweep", small_run[0], "--samplers=euler,x", f"--out={out}")
    assert result.returncode == 1 and "name,option=1.5" in result.stderr


@pytest.mark.parametrize(
    "name",
    ["train", "sample", "evaluate", "sweep", "likelihood", "benchmark", "loop_overhead", "report", "compare"],
)
def test_help_explains_every_flag(name):
    result = program(name, "--help")
    own = [line for line in result.stdout.splitlines() if line.startswith("  --")]
    assert own and all(len(line.split(":", 1)[1].strip()) > 5 for line in own), result.stdout
    assert f"python -m experiments.{name}" in result.stdout


WRONG = {
    "misspelt field": (
        ["--config.optimizer.learing_rate=1"],
        "'learing_rate'. Did you mean 'learning_rate'?",
    ),
    "misspelt group": (["--config.optimzer.learning_rate=1"], "'optimzer'. Did you mean 'optimizer'?"),
    "not a flag": (["steps=3"], "steps=3 is not understood"),
    "unknown dataset": (["--config.data.name=digts"], "'digts'; the nearest names are digits"),
    "image shape": (
        ["--config.data.image_shape=(16,16,1)"],
        "have shape (8, 8, 1), the network takes (16, 16, 1)",
    ),
    "patches": (["--config.model.patch_size=3"], "does not divide into patches of 3"),
    "mesh": (["--config.mesh.data=3"], "needs 3 devices and this machine has 1"),
    "target": (["--config.target.name=veloctiy"], "has clean, noise, velocity"),
    "sampler": (["--config.sampling.sampler.name=hun"], "ddim, euler"),
    "optimizer": (["--config.optimizer.name=admw"], "'admw'; there are adamaxw, adamw"),
    "batch": (["--config.batch_size=5000"], "5000"),
    "choice": (
        ["--config=configs/digits_vae.py:ewae"],
        "the choices are elbo, iwae; got 'ewae', nearest to 'iwae'",
    ),
    "classes": (["--config.data.num_classes=9"], "has 10 classes, and config.data.num_classes is 9"),
    "warm-up": (["--config.optimizer.warmup=50"], "warmup=50"),
}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_end_before_training_with_one_message(tmp_path, flags, words):
    workdir = tmp_path / "run"
    result = program("train", *SMALL, f"--workdir={workdir}", *flags)
    assert result.returncode == 1
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not (workdir / "config.json").exists()


def test_a_batch_that_does_not_divide_by_the_devices(tmp_path):
    import os

    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    result = program("train", *SMALL, f"--workdir={tmp_path / 'run'}", env=environment)
    assert result.returncode == 1
    assert "a batch of 64 does not divide over 3 devices" in result.stderr
    assert "multiples of 3" in result.stderr


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    result = program("train", *SMALL, f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode == 1
    assert "cannot be written to" in result.stderr and "choose another folder" in result.stderr


def test_a_workdir_with_another_config(small_run):
    result = program("train", *SMALL, f"--workdir={small_run[0]}", "--config.optimizer.learning_rate=0.01")
    assert result.returncode == 1
    assert "optimizer.learning_rate: 0.001 there, 0.01 now" in result.stderr
    assert "Choose another --workdir" in result.stderr


def test_mesh_logging_and_schedules_may_differ(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    result = program(
        "train", *SMALL, f"--workdir={workdir}", "--config.mesh.data=1", "--config.mesh.tensor=1", "--config.log_every=5",
        "--config.sampling.every=5", "--config.checkpoint.keep=5", "--config.evaluation.num_samples=370",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_sample_says_what_is_wrong(small_run, tmp_path):
    cases = [
        ([f"--workdir={tmp_path}"], "holds no run"),
        ([f"--workdir={small_run[0]}", "--classes=3,12"], "--classes=3,12 must be numbers from 0 to 9"),
        ([f"--workdir={small_run[0]}", "--step=33"], "no checkpoint 33; the steps there are [20, 30, 40]"),
        ([f"--workdir={small_run[0]}", "--out=x.jpg"], "must end in .png or .npz"),
    ]
    for flags, words in cases:
        result = program("sample", *flags)
        assert result.returncode == 1 and words in result.stderr, result.stderr
