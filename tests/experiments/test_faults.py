"""What happens to running programs: killed, interrupted, out of disk."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.configuration.runs import build, open_run, read_config
from genjax.devices import make_mesh
from genjax.training import Checkpoints, abstract_state
from genjax.training.checkpoints import damage, saved_steps
from tests import virtual_devices
from tests.experiments.launching import ROOT, SMALL, arrays_of, command, run, start

STEPS = 120
LONG = [
    f"--config.num_steps={STEPS}",
    "--config.checkpoint.every=5",
    "--config.sampling.every=1000",
    "--config.evaluation.measures={}",
]
MOMENTS = random.Random(0)


def whole_state(workdir, step=None):
    """Return a whole checkpoint, the newest if no step is given: also what a `Run` leaves out."""
    task, mesh = build(read_config(workdir)), make_mesh({"data": -1}, 1)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = step or checkpoints.latest()
        return checkpoints.restore(step, abstract_state(task, jax.random.key(0), mesh))


def start_training(workdir, *flags, out=None):
    """Start training in a process of its own, with its output in `out` or `workdir`.out."""
    return start("train", *SMALL, f"--workdir={workdir}", *flags, out=out or f"{workdir}.out")


def assert_same_state(a, b, step):
    jax.tree.map(np.testing.assert_array_equal, whole_state(a, step), whole_state(b, step))


def until(condition, process, seconds=120):
    """Waits for a condition while the process runs; False if it ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("faults") / "uninterrupted"
    result = run("train", *SMALL, *LONG, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
def test_stops_at_any_moment_change_nothing(uninterrupted, tmp_path):
    """One run is stopped six times, and the same command goes on each time.

    Two kills are at random moments of training and two while a checkpoint is being written. A
    signal that asks to stop, between them, is answered with a checkpoint.
    """
    workdir = tmp_path / "stopped"
    kills = kill(workdir, LONG, in_save=False) + kill(workdir, LONG, in_save=True)
    stop(workdir, signal.SIGTERM)
    kills += kill(workdir, LONG, in_save=True) + kill(workdir, LONG, in_save=False)
    stop(workdir, signal.SIGINT)
    assert kills > 2, "the run is over too soon to be killed: lengthen it"
    result = run("train", *SMALL, *LONG, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, uninterrupted, STEPS)


@pytest.mark.slow
def test_sigkill_changes_nothing_under_fsdp_either(tmp_path, monkeypatch):
    """Eight virtual devices share the state; the kill is while they write a second checkpoint."""
    monkeypatch.setenv("XLA_FLAGS", virtual_devices.environment(8)["XLA_FLAGS"])
    flags = [*LONG, "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.num_steps=20"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_training(whole, *flags).wait() == 0, Path(f"{whole}.out").read_text()
    assert kill(killed, flags, in_save=True), "the run is over too soon to be killed"
    assert (killed / "checkpoints/00000005").exists()
    assert start_training(killed, *flags).wait() == 0, Path(f"{killed}.out").read_text()
    assert_same_run(killed, whole, 20)


def kill(workdir, flags, in_save):
    """Start training and kill it; return whether it was running.

    The kill is in the second save since the start, or up to 0.1 s after the first one.
    """
    checkpoints = workdir / "checkpoints"
    seen = set(saved_steps(checkpoints))
    process = start_training(workdir, *flags)
    reached = until(lambda: set(saved_steps(checkpoints)) - seen, process)
    if in_save:
        until(lambda: set(checkpoints.glob("*unsealed*")), process)
    elif reached:
        time.sleep(MOMENTS.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def stop(workdir, number):
    """Start training and send it a signal after its first save."""
    seen = set(saved_steps(workdir / "checkpoints"))
    process = start_training(workdir, *LONG)
    assert until(lambda: set(saved_steps(workdir / "checkpoints")) - seen, process)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    output = Path(f"{workdir}.out").read_text().split(number.name)
    assert len(output) > 1 and "the same command goes on from it" in output[-1]


def assert_same_run(a, b, steps):
    """Assert that two runs ended in the same state and logged as many rows."""
    assert_same_state(a, b, steps)
    logged = lambda folder: (folder / "metrics.jsonl").read_text().count("\n")
    assert logged(a) == logged(b)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(small_run, tmp_path):
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    largest = max((workdir / "checkpoints/00000040").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    result = run("train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "warning: the checkpoint" in result.stderr and "00000040 is not used" in result.stderr
    assert_same_state(workdir, small_run[0], 40)


@pytest.mark.slow
def test_divergence_stops_the_program_and_keeps_the_last_good_checkpoint(tmp_path):
    workdir = tmp_path / "diverging"
    flags = [
        "--config.optimizer.learning_rate=1e30",
        "--config.checkpoint.every=1",
        "--config.optimizer.warmup=3",
    ]
    result = run("train", *SMALL, *flags, f"--workdir={workdir}")
    assert result.returncode == 1
    assert "at step" in result.stderr or "after step" in result.stderr
    assert (
        "the last good checkpoint is that of step" in result.stderr
        and "Traceback" not in result.stderr
    )
    state = whole_state(workdir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


DISK_FULL = """
import os, subprocess, sys, time
from pathlib import Path
mount, workdir, out = Path({mount!r}), Path({mount!r}) / "run", {out!r}
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
process = subprocess.Popen({command!r}, stdout=open(out, "w"), stderr=subprocess.STDOUT)
while not (workdir / "checkpoints" / "00000010").exists():
    assert process.poll() is None, Path(out).read_text()
    time.sleep(0.001)
with open(mount / "filler", "wb", buffering=0) as filler:
    while process.poll() is None:
        try:
            filler.write(bytes(4096))
        except OSError:
            time.sleep(0.001)
print("exit", process.wait(), flush=True)
(mount / "filler").unlink()
subprocess.run(["cp", "-r", workdir, {copy!r}], check=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's mount namespaces")
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(uninterrupted, tmp_path):
    """A disk of 4 MB of this test's own is filled while the run goes on.

    The same command goes on from a copy of what is left, on a disk with room.
    """
    mount, copy, out = (tmp_path / name for name in ("mount", "copy", "out"))
    mount.mkdir()
    training = command("train", *SMALL, *LONG, f"--workdir={mount}/run")
    script = DISK_FULL.format(mount=str(mount), copy=str(copy), out=str(out), command=training)
    isolated = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script]
    result = subprocess.run(isolated, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "exit 1" in result.stdout, out.read_text()
    assert (
        "error:" in out.read_text() and "to go on from the last good checkpoint" in out.read_text()
    )
    again = run("train", *SMALL, *LONG, f"--workdir={copy}")
    assert again.returncode == 0, again.stderr
    assert damage(tmp_path / "copy" / "checkpoints" / f"{STEPS:08d}") is None
    assert_same_state(tmp_path / "copy", uninterrupted, STEPS)


@pytest.mark.slow
def test_too_little_space_ends_before_training(tmp_path):
    (tmp_path / "mount").mkdir()
    training = " ".join(command("train", *SMALL, f"--workdir={tmp_path}/mount/run"))
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c",
         f"mount -t tmpfs -o size=300k tmpfs {tmp_path}/mount && {training}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1
    assert "MB free; checkpoints of" in result.stderr and "make room" in result.stderr


def test_restored_is_what_sampling_reads(small_run):
    whole = whole_state(small_run[0])
    state = open_run(small_run[0]).state
    jax.tree.map(np.testing.assert_array_equal, state.averages, whole.averages)
    assert state.step == 40 and not jax.tree.leaves((state.params, state.optimizer_state))
    state = open_run(small_run[0], weights="params").state
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    assert not jax.tree.leaves(state.averages)


SAMPLED_BY_SPLIT_WEIGHTS = """
import runpy, sys
import jax
from experiments.configuration.runs import open_run
state = open_run({workdir!r}).state
arrays = [a for a in jax.tree.leaves(state) if a.size >= 2**12]
assert arrays and all(8 * a.addressable_shards[0].data.size == a.size for a in arrays)
sys.argv[1:] = {flags!r}
runpy.run_module("experiments.sample", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_run_is_sampled_with_its_weights_split_over_all_devices(small_run, tmp_path):
    workdir, count = str(small_run[0]), "--count=2"
    result = run("sample", f"--workdir={workdir}", count, f"--out={tmp_path}/alone.npz")
    assert result.returncode == 0, result.stderr
    flags = [f"--workdir={workdir}", count, f"--out={tmp_path}/split.npz"]
    script = SAMPLED_BY_SPLIT_WEIGHTS.format(workdir=workdir, flags=flags)
    virtual_devices.run(["-c", script], 8)
    alone, split = (arrays_of(tmp_path / name)["images"] for name in ("alone.npz", "split.npz"))
    assert np.abs(split.astype(int) - alone).max() <= 1  # sums in another order
