"""Runs that start from other runs, are made longer or train adapters; and runs as objects."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import pretrained
from genjax.pipelines import Run
from tests.experiments.launching import SMALL, run, shared_run

pytestmark = pytest.mark.slow

CONSTANT = [
    *SMALL,
    "--config.optimizer.schedule=constant",
    "--config.evaluation.measures={}",
    # As DiT is published, so that it can be saved in that form.
    "--config.model.max_period=10752.168531898922",
    "--config.model.base_size=4",
]


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    """A run of 20 steps at a constant learning rate; not to be written to."""
    return shared_run(tmp_path_factory, "constant", *CONSTANT, "--config.num_steps=20")[0]


def succeed(name, *flags):
    result = run(name, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def leaves(workdir):
    """The parameters and averages of a run's last step."""
    opened = Run(workdir)
    averages = opened.state.averages["ema"]
    return {
        jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(averages)
    }


def test_a_finished_run_is_made_longer_by_the_same_command(base_run, tmp_path):
    """Twenty steps and twenty more are forty at once, bit for bit."""
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    shutil.copytree(base_run, longer)
    succeed("train", *CONSTANT, "--config.num_steps=40", f"--workdir={longer}")
    succeed("train", *CONSTANT, "--config.num_steps=40", f"--workdir={whole}")
    one, other = leaves(longer), leaves(whole)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert Run(longer).step == 40


@pytest.mark.parametrize(
    "flag",
    ["--config.optimizer.schedule=cosine", "--config.optimizer.warmup=0.1"],
    ids=["cosine", "fraction"],
)
def test_where_the_rate_depends_on_the_length_it_says_what_to_do(base_run, flag, tmp_path):
    """The record of the run says that it was trained with the flag."""
    workdir = shutil.copytree(base_run, tmp_path / "run")
    name, value = flag.removeprefix("--config.optimizer.").split("=")
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["optimizer"][name] = float(value) if name == "warmup" else value
    (workdir / "config.json").write_text(json.dumps(record))
    result = run("train", *CONSTANT, flag, f"--workdir={workdir}", "--config.num_steps=40")
    assert result.returncode == 1
    assert (
        "num_steps: 20 there, 40 now" in result.stderr and f"--init_from={workdir}" in result.stderr
    )


def test_fine_tuning_starts_from_the_averaged_weights_and_lists_what_does_not_fit(
    base_run, tmp_path
):
    """With a learning rate of 0 the network stays what it was, but for what does not fit."""
    flags = [
        "--config.optimizer.learning_rate=0.0",
        "--config.optimizer.weight_decay=0.0",
        "--config.num_steps=6",
    ]
    printed = succeed(
        "train", *CONSTANT, *flags, f"--workdir={tmp_path}/same", f"--init_from={base_run}"
    )
    source, same = leaves(base_run), leaves(tmp_path / "same")
    assert f"{len(source)} arrays of {base_run}; 0 do not fit" in printed
    for name, value in source.items():  # an average of equal values rounds
        np.testing.assert_allclose(same[name], value, rtol=1e-6)
    assert json.loads((tmp_path / "same/config.json").read_text())["init_from"] == str(base_run)

    other = ["--config.model.patch_size=4"]
    printed = succeed(
        "train", *CONSTANT, *flags, *other, f"--workdir={tmp_path}/other", f"--init_from={base_run}"
    )
    changed = leaves(tmp_path / "other")
    unfit = {name for name, value in changed.items() if value.shape != source[name].shape}
    assert (
        unfit
        and f"{len(unfit)} do not fit" in printed
        and printed.count("other shape: network/params") == len(unfit)
    )
    kept = [name for name in changed if name not in unfit]
    assert len(kept) == len(source) - len(unfit)
    for name in kept:
        np.testing.assert_allclose(changed[name], source[name], rtol=1e-6)


def test_a_source_that_fits_nowhere_is_an_error_before_any_compute(base_run, tmp_path):
    other = ["--config.model.width=48", "--config.model.depth=2"]
    result = run(
        "train", *CONSTANT, *other, f"--workdir={tmp_path}/a", f"--init_from={tmp_path}/nothing"
    )
    assert result.returncode == 1 and "nothing" in result.stderr
    assert not (tmp_path / "a/checkpoints").exists()


def test_a_run_is_not_made_shorter_than_it_is(base_run, tmp_path):
    """Its learning rate is constant, so the length is free; what is recorded stays."""
    shutil.copytree(base_run, tmp_path / "a")
    record = (tmp_path / "a/config.json").read_bytes()
    result = run("train", *CONSTANT, "--config.num_steps=10", f"--workdir={tmp_path}/a")
    assert result.returncode == 1
    assert "is at step 20, beyond config.num_steps=10; take a larger number" in result.stderr
    assert (tmp_path / "a/config.json").read_bytes() == record


def test_a_kill_in_the_first_save_does_not_change_where_a_run_starts_from(tmp_path):
    """No checkpoint is whole yet, so the source is read again: here it shows by its absence."""
    (tmp_path / "a/checkpoints/00000010.unsealed").mkdir(parents=True)
    result = run("train", *CONSTANT, f"--workdir={tmp_path}/a", f"--init_from={tmp_path}/nothing")
    assert result.returncode == 1 and "nothing" in result.stderr


def test_adapters_of_published_weights_are_all_that_is_trained(base_run, tmp_path):
    """From published weights: frozen kernels stay, those with adapters move, the loss falls."""
    Run(base_run).save(tmp_path / "published")
    flags = [
        f"--config.adapters.source={tmp_path}/published",
        "--config.adapters.rank=2",
        "--config.num_steps=40",
    ]
    printed = succeed(
        "train",
        *CONSTANT,
        *flags,
        f"--workdir={tmp_path}/lora",
        "--config.optimizer.learning_rate=0.01",
    )
    assert "adapters of rank 2: 256 parameters are trained" in printed
    page = (tmp_path / "lora/report.html").read_text()
    assert f"started from {tmp_path}/published" in page.replace("<wbr>", "")
    tuned, source = Run(tmp_path / "lora"), Run(base_run)
    assert sum(a.size for a in jax.tree.leaves(tuned.state.averages)) == 2 * (
        32 + 96
    )  # of one kernel, 32 → 96
    before, after = source.variables, tuned.variables
    moved = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if not np.allclose(a, b, atol=1e-6)
    ]
    assert len(moved) == 1 and "query_key_value" in moved[0]
    change = np.asarray(after["params"]["blocks"]["query_key_value"]["kernel"]) - np.asarray(
        before["params"]["blocks"]["query_key_value"]["kernel"]
    )
    assert np.linalg.matrix_rank(change[0], tol=1e-5) == 2
    rows = [json.loads(line) for line in (tmp_path / "lora/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    succeed("sample", f"--workdir={tmp_path}/lora", "--count=1", f"--out={tmp_path}/s.npz")


def test_a_run_is_an_object(base_run, tmp_path):
    opened = Run(base_run)
    images = opened.sample(labels=[3, 7, 3], seed=5)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(opened.sample(labels=[3, 7], seed=5), images[:2])
    assert not np.array_equal(opened.sample(labels=[3, 7], seed=6), images[:2])
    assert opened.sample().shape == (10, 8, 8, 1)
    assert opened.sample(labels=[1], trajectory=True, num_steps=3).shape == (4, 1, 8, 8, 1)
    with pytest.raises(ValueError, match="config.sampling has no steps"):
        opened.sample(steps=3)
    with pytest.raises(ValueError, match="takes no prompts"):
        opened.sample(prompts=["a digit"])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run(tmp_path)

    with pytest.raises(ValueError, match="holds a run: save the weights into another folder"):
        opened.save(base_run)
    opened.save(tmp_path / "published")
    module, variables = pretrained.load(tmp_path / "published")
    x, t, labels = jnp.ones((2, 8, 8, 1)), jnp.array([0.2, 0.7]), jnp.array([1, 10])
    ours = jax.jit(opened.network.apply)(opened.variables, x, t, labels)
    theirs = jax.jit(module.apply)(variables, x, t, labels)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_run_opens_from_any_folder_with_the_wheel_alone(base_run, tmp_path):
    """The wheel's two packages, without the checkout's configs, in a process outside of it."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    installed = tmp_path / "installed"
    build = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        f"--build-lib={installed}",
        f"--build-base={tmp_path}/build",
    ]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    assert not (installed / "configs").exists()
    program = (
        "from genjax.pipelines import Run; "
        f"print(Run({str(base_run)!r}).sample(labels=[4], seed=1).sum())"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
    result = subprocess.run([sys.executable, "-c", program], **options)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == Run(base_run).sample(labels=[4], seed=1).sum()
    config = tmp_path / "own_config.py"
    config.write_text(
        "from experiments.configuration import base\n\n\ndef get_config():\n"
        "    config = base.diffusion('own', name='digits', image_shape=(8, 8, 1))\n"
        "    config.model.update(patch_size=4, width=16, depth=1, num_heads=1)\n"
        "    config.evaluation.measures = {}\n    config.num_steps = 2\n    return config\n"
    )
    command = [
        sys.executable,
        "-m",
        "experiments",
        "train",
        f"--config={config}",
        "--workdir=own_run",
    ]
    result = subprocess.run(command, **options)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "own_run/report.json").read_text())["steps"] == 2
