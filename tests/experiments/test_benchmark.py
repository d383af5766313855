"""Test the benchmark's rows against counts by hand and by XLA, their files, and its imports."""

import functools
import itertools
import json
import shlex
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from configs import digits_flow, emoji_autoencoder, emoji_text, imagenet256_latent_flow
from experiments.benchmark import (
    commands,
    computed_in,
    measure,
    measured_device,
    random_arrays,
    timed,
    training_command,
)
from experiments.evaluation import autoencoders, prompts
from experiments.launch.experiment import Experiment
from experiments.plan import plan
from experiments.speed.programs import PROGRAMS, cost_of, program_of
from experiments.speed.records import merge, results_of
from experiments.tasks import autoencoding
from genjax.devices import make_mesh
from genjax.devices.specifications import DEVICES
from tests import virtual_devices
from tests.experiments.launching import ROOT, run, run_alone

TWO = virtual_devices.environment(2)  # the rates of several devices of a CPU are not measured
WIDTH, DEPTH, BATCH, STEPS = 64, 2, 16, 3
TOKENS, PATCH = 16, 4  # of 8×8 images in patches of 2×2, one channel


@pytest.fixture(scope="module")
def config():
    config = digits_flow.get_config()
    config.model.update(width=WIDTH, depth=DEPTH, num_heads=2, unroll=1)
    config.batch_size = BATCH
    config.sampling.num_steps = STEPS
    return config


@pytest.fixture(scope="module", params=["train", "sample"])
def row(request, config):
    """A row of a program. Two rounds measure this machine, where the program takes 20."""
    with pytest.MonkeyPatch.context() as patch:
        fast = functools.partial(measured_device, rounds=2)
        patch.setattr("experiments.benchmark.measured_device", fast)
        return measure(config, request.param, steps=3)


@pytest.mark.slow
def test_multiply_adds_are_those_of_the_network(row):
    attention = 2 * TOKENS**2 * WIDTH
    block = 12 * TOKENS * WIDTH**2 + attention + 6 * WIDTH**2  # of every block, with its modulation
    inner = (
        DEPTH * block + TOKENS * WIDTH * PATCH + 2 * WIDTH**2 + WIDTH**2
    )  # head, its modulation, second of time
    outer = (
        TOKENS * WIDTH * PATCH + 256 * WIDTH
    )  # patches and sinusoids, of which there is no gradient
    if row["program"] == "train":
        assert row["multiply_adds"] == BATCH * (3 * inner + 2 * outer)
    else:  # with and without the class
        assert row["multiply_adds"] == STEPS * 2 * BATCH * (inner + outer)


@pytest.mark.slow
def test_xla_counts_the_same_and_what_is_elementwise(row):
    """XLA counts the bodies of the scans over blocks and steps once, and so does our count.

    The part of elementwise operations grows as the network gets narrower. At the default width of
    96 the part is 4 %.
    """
    assert 1.0 < row["xla_ratio"] < 1.15


@pytest.mark.slow
def test_a_row_holds_its_measures(row):
    low, high = row["step_seconds"]["quartiles"]
    assert 0 < low <= row["step_seconds"]["median"] <= high
    assert (
        row["compile_seconds"] > 0
        and row["host_share"] == row["host_seconds"] / row["queued_seconds"]
    )
    assert row["examples_per_second"] == pytest.approx(BATCH / row["queued_seconds"])
    assert row["operations_per_second"] == pytest.approx(
        2 * row["useful_multiply_adds"] / row["queued_seconds"]
    )
    # a CPU has no sheet and tells none of these
    assert row["peak_share"] is row["device_bytes"] is row["breakdown"] is None
    assert 0 < row["least_seconds"] == pytest.approx(row["least_share"] * row["queued_seconds"])
    # at least the parameters; and of training, two moments and an average
    copies = 4 if row["program"] == "train" else 1
    assert row["program_bytes"] > copies * 4 * row["parameters"]
    for name in (
        "device",
        "devices",
        "mesh",
        "batch_size",
        "dtype",
        "python",
        "versions",
        "git_commit",
        "date",
    ):
        assert row[name], name
    assert {"jax", "jaxlib", "flax"} <= row["versions"].keys()
    json.dumps(row)


@pytest.mark.slow
def test_of_a_known_device_there_is_a_share_and_a_bound(config, monkeypatch):
    """The device's products are slow enough to be the largest term of the bound.

    For a TPU, the row also has the costs of operations.
    """
    slow = DEVICES["v5p"]._replace(operations=1e9)
    monkeypatch.setattr("experiments.benchmark.device_of", lambda kind: slow)
    row = measure(config, "sample", steps=2)
    assert row["least_seconds"] == pytest.approx(2 * row["multiply_adds"] / 1e9)
    assert row["peak_share"] == pytest.approx(row["operations_per_second"] / 1e9)
    assert row["breakdown"]["categories"]["products"]["operations"] == 2 * row["multiply_adds"]


@pytest.mark.slow
def test_the_bound_is_the_planners(config, monkeypatch):
    """By memory here: what products move, and the state, read and written."""
    monkeypatch.setattr("experiments.benchmark.device_of", DEVICES.__getitem__)
    monkeypatch.setattr("experiments.benchmark.measured_device", None)
    monkeypatch.setitem(DEVICES, "cpu", DEVICES["h100"])
    row, planned = measure(config, "train", steps=2), plan(config, {"data": 1}, "h100")
    assert row["least_seconds"] == planned["seconds"] == planned["terms"]["memory"]
    assert planned["seconds"] > 2 * 4 * 4 * row["parameters"] / DEVICES["h100"].bandwidth


def test_what_is_computed_again_is_no_use(config, monkeypatch):
    """Useful operations leave out what the gradient computes again, for 16 examples and 2 blocks.

    Attention that stores no weights computes one more product in its gradient. Rematerialisation
    computes the forward pass of the blocks again.
    """
    mesh = make_mesh({"data": 1}, BATCH)
    costs = lambda: cost_of(program_of("train", config, mesh), mesh)
    plain = costs()
    assert plain.operations == plain.useful
    attention = BATCH * DEPTH * TOKENS**2 * WIDTH
    monkeypatch.setattr(sys.modules["genjax.nn.attention.dispatch"], "PLAIN_BYTES", 0)
    chunked = costs()
    # and the sums of outputs times their gradients
    assert chunked.operations == plain.operations + 2 * (attention + BATCH * DEPTH * TOKENS * WIDTH)
    assert chunked.useful == plain.useful
    monkeypatch.undo()
    config = config.copy_and_resolve_references()
    config.model.remat_policy = "nothing_saveable"
    block = 12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH + 6 * WIDTH**2
    again = costs()
    assert again.operations == plain.operations + 2 * BATCH * DEPTH * block
    assert (again.useful, again.moved > plain.moved) == (plain.useful, True)


def test_a_device_without_a_sheet_is_measured(monkeypatch):
    """On a clock where all work takes a second, the largest product has the best rate."""
    monkeypatch.setattr(
        "experiments.benchmark.time", SimpleNamespace(perf_counter=itertools.count(0.0).__next__)
    )
    found = measured_device(rounds=2)
    assert (found.operations, found.bandwidth) == (2 * 2048**3, 2 * 256 * 2**20)


def test_what_a_config_is_evaluated_by_need_not_be_there(monkeypatch):
    def absent():
        raise ImportError

    for module in (autoencoders, prompts):
        monkeypatch.setattr(module, "require_lpips", absent)
    monkeypatch.setattr(autoencoding, "load_lpips", absent)
    latent, text = imagenet256_latent_flow.get_config(), emoji_text.get_config()
    latent.model.update(name="DiT", width=32, depth=1, num_heads=2)
    text.model.update(depth=1, unroll=1)
    for config in (latent, text, emoji_autoencoder.get_config()):
        mesh = make_mesh({"data": 1}, config.batch_size)
        for name in PROGRAMS:
            program_of(name, config, mesh)
        if config.space.name == "Latents":  # nor is the autoencoder there
            config.data.image_shape, config.space = config.space.shape, dict(name="Points")
        with pytest.raises(ImportError):
            Experiment.from_config(config)
    (lpips,) = program_of("train", config, mesh).args[3:]
    assert lpips["params"]["vgg16"]["conv1_1"]["kernel"].shape == (3, 3, 3, 64)


def test_what_cannot_be_counted_or_divided_is_refused(config):
    config = config.copy_and_resolve_references()
    config.sampling.sampler = dict(name="adaptive")
    with pytest.raises(
        ValueError, match="config.sampling.sampler.name is 'adaptive'.*such as 'heun'"
    ):
        measure(config, "sample", steps=2)
    config.accumulation_steps = 3
    message = "config.batch_size 16 does not divide into config.accumulation_steps 3"
    for call in (
        lambda: measure(config, "train", steps=2),
        lambda: plan(config, {"data": 1}, "h100"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_host_and_step_are_told_apart():
    """A call that returns at once, of a result that is ready later."""

    class Later:
        def block_until_ready(self):
            time.sleep(0.05)

    seconds = timed(Later, 4)
    assert seconds["step_seconds"]["median"] > 0.05 > seconds["host_seconds"] * 10
    assert seconds["queued_seconds"] < 0.05  # waited for once, not four times
    blocking = timed(lambda: time.sleep(0.02), 4)
    assert blocking["host_seconds"] >= 0.02 and blocking["host_share"] == pytest.approx(1, abs=0.3)


def test_random_arrays_are_within_range():
    on = SingleDeviceSharding(jax.devices()[0])
    kinds = {"label": jnp.int32, "image": jnp.uint8, "mask": bool, "tokens": jnp.bfloat16}
    made = random_arrays(
        {k: jax.ShapeDtypeStruct((4000,), d, sharding=on) for k, d in kinds.items()}, 7
    )
    assert {name: a.dtype for name, a in made.items()} == {
        name: jnp.dtype(d) for name, d in kinds.items()
    }
    assert made["label"].min() == 0 and made["label"].max() == 6
    assert made["image"].min() == 0 and made["image"].max() == 255
    assert made["mask"].all() and abs(float(made["tokens"].astype(float).std()) - 1) < 0.1


def test_types_are_those_of_all_networks():
    assert computed_in({"name": "DiT"}) == "float32"
    model = {
        "generator": {"dtype": "bfloat16"},
        "discriminator": {"dtype": "float32", "param_dtype": "x"},
    }
    assert computed_in(model) == "bfloat16 float32"


def test_rows_replace_older_ones_of_the_same_measurement(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    row = dict(
        config="a", program="train", device="cpu", mesh={"data": 1}, batch_size=8, queued_seconds=1
    )
    merge(path, [row, row | {"program": "sample"}])
    merge(
        path,
        [row | {"queued_seconds": 2}, row | {"batch_size": 16}, row | {"channels_last": False}],
    )
    rows = json.loads(path.read_text())
    assert [(r["program"], r["batch_size"], r["queued_seconds"]) for r in rows] == [
        ("sample", 8, 1), ("train", 8, 2), ("train", 16, 1), ("train", 8, 1)
    ]  # fmt: skip
    assert results_of("NVIDIA H100 80GB HBM3").name == "nvidia_h100_80gb_hbm3.json"


def test_a_budget_of_time_is_a_number_of_steps_to_train():
    row = dict(experiment="digits_flow", queued_seconds=0.25)
    arguments = ["--config=configs/digits_flow.py", "--program=train", "--config.batch_size=32"]
    steps, command = training_command(row, [*arguments, "--budget=600"], 600.0)
    assert steps == 2400
    assert command == (
        "python -m experiments.train --config=configs/digits_flow.py --config.batch_size=32 "
        "--config.num_steps=2400 --workdir=runs/digits_flow"
    )
    assert training_command(row, arguments, 0.1)[0] == 1
    two_words = [
        "--config=a.py",
        "--steps",
        "3",
        "--config.batch_size",
        "32",
        "--config.a={'b': 1}",
    ]
    words = shlex.split(training_command(row, two_words, 600.0)[1])[3:6]
    assert words == ["--config=a.py", "--config.batch_size=32", "--config.a={'b': 1}"]


def test_each_config_has_a_command_of_its_own():
    found = commands(
        ["--config=a.py", "--steps=3", "--config", "b.py:c,d", "--config.batch_size=8"]
    )
    rest = ["--steps=3", "--config.batch_size=8"]
    assert found == [["--config=a.py", *rest], ["--config=b.py:c,d", *rest]]
    assert commands(["--help"]) == []


def test_a_budget_without_the_training_program_is_refused():
    result = run("benchmark", "--config=configs/digits_flow.py", "--program=sample", "--budget=60")
    assert result.returncode == 1
    assert "--budget=60 is of training, and --program=sample is not" in result.stderr


@pytest.mark.slow
def test_the_program_needs_no_libraries_of_data(tmp_path):
    average = {"ema": {"name": "HalfLife", "steps": 9.0}}
    changes = ["--config.batch_size=4", f"--config.averages={average}"]
    flags = ["--config=configs/digits_vae.py", *changes, "--steps=2", "--program=sample"]
    blocked = (
        "import sys, runpy; "
        "sys.modules |= dict.fromkeys(['grain', 'tensorflow_datasets', 'array_record']);"
    )
    run = "runpy.run_module('experiments.benchmark', run_name='__main__', alter_sys=True)"
    out = [f"--out={tmp_path}/rows.json", f"--trace={tmp_path}/trace"]
    command = [sys.executable, "-c", blocked + run, *flags, *out]
    result = subprocess.run(command, cwd=ROOT, env=TWO, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "digits_vae" in result.stdout and "examples/s" in result.stdout
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["config"] == "configs/digits_vae.py" and row["overrides"] == {
        "batch_size": 4,
        "averages": average,
    }
    assert row["batch_size"] == 4 and row["program"] == "sample"
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_several_configs_one_of_which_is_not_there(tmp_path):
    configs = ["--config=configs/absent.py", "--config=configs/gaussians_gan.py"]
    flags = ["--program=sample", "--steps=2", f"--out={tmp_path}/rows.json"]
    result = run_alone("benchmark", *configs, *flags, XLA_FLAGS=TWO["XLA_FLAGS"])
    assert result.returncode == 1 and "configs/absent.py" in result.stderr
    assert "Traceback" not in result.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())  # the other is measured all the same
    assert row["config"] == "configs/gaussians_gan.py"
