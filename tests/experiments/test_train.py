"""The program that trains: what it leaves, what it refuses, and what it needs no second time."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits_distillation, digits_flow
from experiments import train
from experiments.inputs.datasets import abstract_batch
from experiments.tasks.diffusion import Diffusion
from experiments.tasks.matching import Matching
from genjax.models.gans import patchgan, stylegan2
from genjax.training import abstract_state
from genjax.training.loop import compile_update
from genjax.training.pictures import read_rows
from tests.experiments.launching import ROOT, SMALL, arrays_of, run
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config

REPORTED = {
    "experiment", "steps", "seconds", "steps_per_second", "device", "class_accuracy",
    "frechet_distance", "frechet_distance_train", "precision", "recall", "nearest_neighbour_ratio",
    "num_samples", "sampler", "num_steps", "guidance_scale", "ema", "seed",
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
    steps = [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [10, 20, 30, 40]
    assert sorted(p.name for p in (workdir / "samples").iterdir()) == [
        "step_000020.png",
        "step_000040.png",
    ]
    with Image.open(workdir / "samples.png") as image:
        assert image.height == 10 * 66 and image.width > 2 * 66  # a named row per class
        assert read_rows(image) == list("0123456789")
    last = workdir / "samples/step_000040.png"
    assert last.read_bytes() == (workdir / "samples.png").read_bytes()
    with Image.open(workdir / "real.png") as image:
        assert read_rows(image) == list("0123456789")
    for suffix in ("gif", "webp"):
        with Image.open(workdir / f"noise_to_data.{suffix}") as animation:
            assert animation.n_frames == 5
    with Image.open(workdir / "curves.png") as image:
        assert image.size[0] > 500
    films = "noise_to_data.gif", "noise_to_data.webp"
    for name in ("samples.png", *films, "curves.png", "report.json", "report.html"):
        assert (workdir / name).exists()
        assert str(workdir / name) in result.stdout


def test_the_update_is_traced_once_and_the_program_is_that_of_the_task(tmp_path, monkeypatch):
    traces, update = [], Diffusion.update
    counted = lambda *args: (traces.append(0), update(*args))[1]
    config = digits_flow.get_config()
    config.model.update(width=32, depth=1, unroll=1, num_heads=2)
    monkeypatch.setattr(Diffusion, "update", counted)
    prepared = train.prepare(config, tmp_path, None)
    task, mesh = prepared.experiment.task, prepared.mesh
    arguments = (
        abstract_state(task, jax.random.key(0), mesh),
        abstract_batch(config, task),
        jax.random.key(0),
    )

    def program(packed):
        step = compile_update(task, arguments[0], mesh, packed=packed)
        with jax.set_mesh(mesh):
            return step.lower(*arguments).as_text()

    first = program(prepared.update)
    assert len(traces) == 1
    assert first == program(None)
    assert len(traces) == 2


def test_nothing_but_progress_is_printed(small_run):
    """No warnings, no commentary of libraries."""
    _, result = small_run
    progress = ("training ", "evaluating ")  # the latter if it takes long
    assert all(line.startswith(progress) for line in result.stderr.splitlines() if line), (
        result.stderr
    )


@pytest.mark.slow
def test_a_run_of_many_classes_shows_some(tmp_path):
    """Forty classes, from folders: every second one has a row."""
    random = np.random.default_rng(0)
    for i in range(40 * 5):
        folder = tmp_path / "images" / ("test" if i < 40 else "train") / f"{i % 40:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    result = run(
        "train", *SMALL, f"--workdir={tmp_path / 'run'}", "--config.data.name=folder",
        "--config.num_steps=6", f"--config.data.directory={tmp_path / 'images'}",
        "--config.data.image_shape=8,8,3", "--config.condition.num_classes=40",
        "--config.sampling.batch_size=16", "--config.evaluation.num_samples=40",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for name in "samples.png", "noise_to_data.gif":
        with Image.open(tmp_path / "run" / name) as image:
            assert image.height == 20 * 66 and image.width > 2 * 66
    with Image.open(tmp_path / "run/samples.png") as image:
        assert read_rows(image) == [
            f"{label:02}" for label in range(0, 40, 2)
        ]  # the folders' names
    with Image.open(tmp_path / "run/real.png") as image:  # one of five images is held out
        assert read_rows(image) == [f"{label:02} (1 from training)" for label in range(0, 40, 2)]
        places = np.asarray(image)[:, -2 * 66 :].reshape(20, 66, 2, 66, -1)[:, 1:-1, :, 1:-1]
        assert places.std(axis=(1, 3, 4)).min() > 50  # noise; an empty place is of one colour
    result = run(
        "sample", f"--workdir={tmp_path / 'run'}", "--count=1", f"--out={tmp_path / 'a.npz'}"
    )
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(arrays_of(tmp_path / "a.npz")["labels"], np.arange(0, 40, 2))


def test_the_same_command_again_trains_and_evaluates_no_further(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    kept = {name: (workdir / name).stat().st_mtime_ns for name in ("samples.png", "findings.json")}
    before = (workdir / "metrics.jsonl").read_text()
    result = run("train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "this run is finished: all 40 steps are done; python -m" in result.stdout
    assert "resumed from" not in result.stdout
    assert "evaluating" not in result.stdout and "evaluating" in small_run[1].stdout
    assert {name: (workdir / name).stat().st_mtime_ns for name in kept} == kept
    assert (workdir / "metrics.jsonl").read_text() == before
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (small_run[0], workdir))
    assert a == b


def test_a_run_that_goes_on_says_from_where(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints/00000040")
    result = run("train", *SMALL, f"--workdir={workdir}")
    assert "\nresumed from step 30 of 40\n" in result.stdout, result.stderr
    kept = "all steps are saved, and after a stop the same command goes on from here"
    assert f"\nsampling and evaluating ({kept})\n" in result.stdout
    assert not list(workdir.glob("events.out.tfevents.*"))  # TensorBoard is off


def test_a_run_on_data_that_grew_since_does_not_go_on(tmp_path):
    config = small_config()
    workdir = Path(random_run(tmp_path / "run", config))
    train.prepare(config, workdir, None)
    record = json.loads((workdir / "config.json").read_text())
    assert record["num_examples"] == 1437  # of the 1,797 digits, four fifths
    train.prepare(config, workdir, None)
    # A field that earlier versions ignored, and that a config file may no longer have.
    ignored = record | {"config": record["config"] | {"num_step": 5}}
    (workdir / "config.json").write_text(json.dumps(ignored))
    train.prepare(config, workdir, None)
    (workdir / "config.json").write_text(json.dumps(record | {"num_examples": 1430}))
    words = f"trained on 1,430 examples, and config.data has 1,437 by now, .* --init_from={workdir}"
    with pytest.raises(ValueError, match=words):
        train.prepare(config, workdir, None)


def test_mesh_logging_and_schedules_may_differ(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    result = run(
        "train", *SMALL, f"--workdir={workdir}", "--config.mesh.data=1", "--config.mesh.tensor=1",
        "--config.log_every=5", "--config.sampling.every=5", "--config.checkpoint.keep=5",
        "--config.evaluation.num_samples=370", "--config.evaluation.every=40",
        "--config.writers.board=TensorBoard",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    report = json.loads((workdir / "report.json").read_text())
    assert (
        report.keys() >= REPORTED
    )  # also where the measures were due in the loop, before it was started again
    assert report["num_samples"] == 370  # another config is evaluated anew


WRONG = {
    "misspelt field": (
        ["--config.optimizer.learing_rate=1"],
        "has learing_rate, which adamw does not take; did you mean 'learning_rate'?",
    ),
    "misspelt group": (
        ["--config.optimzer.learning_rate=1"],
        "the config has no field 'optimzer.learning_rate'; "
        "did you mean --config.optimizer.learning_rate?",
    ),
    "field of another part": (
        ["--config.sampler.name=heun"],
        "the config has no field 'sampler.name'; did you mean --config.sampling.sampler.name?",
    ),
    "field without its part": (
        ["--config.learning_rate=1"],
        "no field 'learning_rate'; did you mean --config.optimizer.learning_rate?",
    ),
    "argument of a part that the config does not list": (
        ["--config.process.preconditioning.data_deviation=2"],
        "set process.preconditioning as a whole: "
        "--config.process.preconditioning=\"{'name':…,'data_deviation':…}\"",
    ),
    "network of no module": (
        ["--config.model.name=my_networks_.UNet"],
        "config.model.name is 'my_networks_.UNet', and there is no module my_networks_; ",
    ),
    "not a flag": (["steps=3"], "steps=3 is not understood"),
    "unknown dataset": (["--config.data.name=digts"], "'digts'; the nearest names are digits"),
    "option of the data": (
        ["--config.data.options.colour=red"],
        "dataset 'digits' takes no option 'colour'; it takes none",
    ),
    "image shape": (
        ["--config.data.image_shape=(16,16,1)"],
        "have shape (8, 8, 1), the network takes (16, 16, 1)",
    ),
    "patches": (["--config.model.patch_size=3"], "does not divide into patches of 3"),
    "mesh": (["--config.mesh.data=3"], "needs 3 devices and this machine has 1"),
    "mesh of which data is the rest": (
        ["--config.mesh.fsdp=4"],
        "the mesh {'data': -1, 'fsdp': 4} needs a multiple of 4 devices and this machine has 1",
    ),
    "field of the network": (
        ["--config.model.widht=64"],
        "dtype, param_dtype; did you mean 'width'?",
    ),
    "target": (["--config.target.name=veloctiy"], "there are clean, noise, velocity"),
    "sampler": (["--config.sampling.sampler.name=hun"], "'hun'; did you mean 'heun'? there are "),
    "optimizer": (["--config.optimizer.name=admw"], "'admw'; did you mean 'adamw'? there are "),
    "batch": (["--config.batch_size=5000"], "5000"),
    "choice": (
        ["--config=configs/digits_vae.py:ewae"],
        "the choices are elbo, iwae; got 'ewae', nearest to 'iwae'",
    ),
    "classes": (
        ["--config.condition.num_classes=9"],
        "has 10 classes, and config.condition.num_classes is 9",
    ),
    "a seed below 0": (["--config.seed=-1"], "config.seed is -1; it must be at least 0"),
    "best by what": (
        ["--config.checkpoint.keep_best=fidd"],
        "keep_best is 'fidd'; it must be one of class_acc",
    ),
    "best of nothing": (
        ["--config.checkpoint.keep_best=frechet_distance"],
        "nothing is measured while the run trains; set config.evaluation.every",
    ),
    "best of steps that are not saved": (
        ["--config.checkpoint.keep_best=frechet_distance", "--config.evaluation.every=15"],
        "measures every 15 steps meet few checkpoints every 10: set config.checkpoint.every",
    ),
    "data": (
        ["--config.data.resise=True"],
        "the config has no field 'data.resise'; did you mean --config.data.resize?",
    ),
    "a name in place of a part": (
        ["--config.sampling.sampler=heun"],
        "flag --config.sampling.sampler=heun: it has fields of its own, so set one of them, as "
        "--config.sampling.sampler.name=heun",
    ),
    "kept at no save": (
        ["--config.checkpoint.keep_every=15"],
        "keep_every is 15; it must be a multiple of config.checkpoint.every, 10",
    ),
    "watched metrics": (
        ["--config.explosions.deviations=6.", "--config.explosions.metrics=('loss','norm')"],
        "config.explosions.metrics has norm; the metrics of a step are learning_rate, loss",
    ),
    "a profile after the end": (
        ["--config.profile_at=40"],
        "config.profile_at=40 traces the steps after it; take one below config.num_steps=40",
    ),
    "warm-up": (
        ["--config.optimizer.warmup=50"],
        "config.optimizer.warmup is 50 steps, and must be at least 0 and fewer than "
        "config.num_steps=40 and decay=40: set --config.optimizer.warmup=0.1,",
    ),
    "heads": (
        ["--config.model.num_heads=3"],
        "config.model.num_heads is 3 and config.model.width 32: the heads must divide the width",
    ),
    "rank": (
        ["--config.data.image_shape=8,8"],
        "config.data.image_shape is 8,8; for config.data.feature=image it needs 3 positive "
        "integers: height, width, channels",
    ),
    "parameters in bfloat16": (
        ["--config.model.param_dtype=bfloat16"],
        "parameters are bfloat16, in which averages and an optimizer's moments stand still",
    ),
    "layers in float16": (
        ["--config.model.dtype=float16"],
        "DiT has dtype float16, in which small gradients are 0, since training scales no loss: "
        "take bfloat16",
    ),
    "a batch of none": (["--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
    "no columns": (["--config.sampling.per_class=0"], "sampling.per_class is 0; it must be at"),
    "few samples": (
        ["--config.evaluation.num_samples=5"],
        "config.evaluation.num_samples is 5, and config.evaluation.measures.samples needs 6",
    ),
    "few held-out images": (
        ["--config.data.held_out_split=test[:4]"],
        "digits (test[:4]) has 4 different examples, "
        "and config.evaluation.measures.samples needs 6",
    ),
    "no held-out images": (
        ["--config.data.held_out_split=test[:0]"],
        "(while reading the held-out examples, config.data.held_out_split='test[:0]')",
    ),
    "folder of images": (
        ["--config.data.name=folder", "--config.data.directory=nowhere"],
        f"there is no folder {ROOT / 'nowhere'}: give as data_dir (config.data.directory)",
    ),
    "weights to adapt": (
        ["--config.adapters.source=runs/nowhere"],
        f"config.adapters.source names {ROOT / 'runs/nowhere'}, and there is no such folder",
    ),
    "weights to start from": (
        ["--init_from=runs/nowhere"],
        f"--init_from names {ROOT / 'runs/nowhere'}, and there is no such folder",
    ),
    "an unset variable as the weights to start from": (
        ["--init_from="],
        "--init_from is empty: give a folder, or leave the flag out",
    ),
    "kernels to adapt": (
        ["--config.adapters.source=runs/nowhere", "--config.adapters.select=(query"],
        "config.adapters.select is '(query', no regular expression: missing )",
    ),
    "task of another family": (
        ["--config.task=GAN"],
        "config.task is 'GAN', which reads a field 'generator' that this config lacks: add it, or",
    ),
}


OF_OTHER_TASKS = {
    "warm-up of one of two": (
        ["--config=configs/emoji_autoencoder.py:kl", "--config.num_steps=50"],
        "config.optimizer.autoencoder.warmup is 100 steps",
    ),
    "heads of a GAN": (
        ["--config=configs/digits_gan.py:vit_gan", "--config.model.discriminator.num_heads=5"],
        "config.model.discriminator.num_heads is 5 and config.model.discriminator.width 64",
    ),
    "a generator in bfloat16": (
        ["--config=configs/digits_gan.py:dcgan", "--config.model.generator.param_dtype=bfloat16"],
        "parameters are bfloat16, in which averages and an optimizer's moments stand still",
    ),
    "a GAN of another size": (
        [
            "--config=configs/digits_gan.py:dcgan",
            "--config.data.image_shape=16,16,3",
            "--config.data.resize=True",
        ],
        "config.model.generator makes [8, 8, 1], and config.data.image_shape is [16, 16, 3]: set "
        "--config.data.image_shape=8,8,1",
    ),
}


@pytest.mark.parametrize(("flags", "words"), OF_OTHER_TASKS.values(), ids=OF_OTHER_TASKS.keys())
def test_mistakes_with_other_tasks_end_so_too(tmp_path, flags, words):
    result = run("train", f"--workdir={tmp_path / 'run'}", *flags)
    (message,) = result.stderr.splitlines()
    assert words in message and message.startswith("error: ")
    assert result.returncode == 1 and not (tmp_path / "run").exists()


def test_only_networks_that_bound_their_activations_train_in_float16():
    def check(**parts):
        train.check_precision(SimpleNamespace(networks=lambda *state: {}, **parts), {})

    generator = stylegan2.Generator(8, dtype="float16")
    check(generator=generator)
    adversary = SimpleNamespace(network=patchgan.Discriminator(dtype=np.float16))
    for parts in (dict(generator=generator.clone(clamp=None)), dict(adversary=adversary)):
        with pytest.raises(ValueError, match="r has dtype float16, in which small gradients are 0"):
            check(**parts)


def test_a_figure_that_is_not_finite_is_no_score(tmp_path):
    """NaN is neither more nor less than another score, so it could win."""
    rows = [dict(step=step, fd_vgg16=value) for step, value in ((1, 3.0), (2, math.nan), (3, 5.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train.scores_by("fd_vgg16", tmp_path)() == {1: -3.0, 3: -5.0}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_end_before_training_with_one_message(tmp_path, flags, words):
    workdir = tmp_path / "run"
    result = run("train", *SMALL, f"--workdir={workdir}", *flags)
    assert result.returncode == 1
    (message,) = [line for line in result.stderr.splitlines() if line != "See --help."]
    assert words in message and message.startswith("error: ")
    assert not workdir.exists()


def test_a_batch_that_does_not_divide_by_the_devices(tmp_path, monkeypatch):
    devices = 3 * jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices)
    result = run("train", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert "a batch of 64 does not divide over 3 devices" in result.stderr
    assert "a multiple of 3 does" in result.stderr


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("train", *SMALL, f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode == 1
    assert "cannot be written to" in result.stderr and "choose another folder" in result.stderr


def test_checkpoints_that_cannot_be_written_are_found_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    result = run("train", *SMALL, f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert "cannot be written to" in result.stderr and "choose another folder" in result.stderr


def test_a_run_without_checkpoints_is_not_begun_again_from_random_weights(tmp_path):
    """It was stopped before its first checkpoint. To resume, --init_from may be left out."""
    (tmp_path / "config.json").write_text(json.dumps(dict(config={}, init_from="runs/first")))
    result = run("train", *SMALL, f"--workdir={tmp_path}")
    assert result.returncode == 1, result.stdout
    assert "started from runs/first and has no checkpoint yet: give --init_from" in result.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_no_folder_named_as_the_home_folder_is_made():
    """Bash leaves the ~ of --workdir=~/run as it is, and removing such a folder is dangerous."""
    result = run("train", *SMALL, "--workdir=~/run")
    assert result.returncode == 1 and "write $HOME in its place" in result.stderr
    assert not (ROOT / "~").exists()


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://bucket/run"])
def test_addresses_of_buckets_are_refused(workdir):
    result = run("train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 1 and "copy it to the bucket afterwards" in result.stderr


def test_a_workdir_with_another_config(small_run):
    result = run(
        "train", *SMALL, f"--workdir={small_run[0]}", "--config.optimizer.learning_rate=0.01"
    )
    assert result.returncode == 1
    assert "optimizer.learning_rate: 0.001 there, 0.01 now" in result.stderr
    assert "Choose another --workdir" in result.stderr


def test_a_student_of_a_grid_keeps_the_grid():
    """The grid of `config.sampling` is part of what it learns; its other fields are not."""
    config = digits_distillation.get_config("DMD2")
    free = train.free_to_differ(config, Matching.trained_with)
    may_change = lambda field: field.startswith(free)
    assert not may_change("sampling.grid") and not may_change("sampling.grid.name")
    assert all(map(may_change, ("sampling.seed", "sampling.num_steps", "log_every", "mesh.data")))
    assert "sampling.grid".startswith(train.free_to_differ(config))


def test_fine_tuning_where_a_run_is_says_that_it_would_change_nothing(small_run):
    workdir, _ = small_run
    record = (workdir / "config.json").read_bytes()
    result = run("train", *SMALL, f"--workdir={workdir}", "--init_from=runs/nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: --init_from=runs/nowhere would change nothing: {workdir} holds a run that started "
        "from random weights. Choose another --workdir to fine-tune, or leave out --init_from"
    )
    assert (workdir / "config.json").read_bytes() == record
