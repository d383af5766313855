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
from genjax.training.checkpoints import damage
from tests import virtual_devices
from tests.experiments.launching import SMALL, run, run_alone, start

STEPS = 100
LONG = [
    f"--config.num_steps={STEPS}",
    "--config.checkpoint.every=5",
    "--config.sampling.every=1000",
    "--config.evaluation.measures={}",
]


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
    result = run_alone("train", *SMALL, *LONG, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
def test_sigkill_at_any_moment_changes_nothing(uninterrupted, tmp_path):
    """Three kills at random moments of training and three while a checkpoint is being written."""
    kill_and_resume(uninterrupted, tmp_path / "killed", LONG, attempts=6)


@pytest.mark.slow
def test_sigkill_changes_nothing_under_fsdp_either(tmp_path, monkeypatch):
    """Eight virtual devices share the state; one kill is in training and one in a checkpoint."""
    monkeypatch.setenv("XLA_FLAGS", virtual_devices.environment(8)["XLA_FLAGS"])
    flags = [*LONG, "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.num_steps=40"]
    workdir = tmp_path / "uninterrupted"
    assert start_training(workdir, *flags).wait() == 0, Path(f"{workdir}.out").read_text()
    kill_and_resume(workdir, tmp_path / "killed", flags, attempts=2, steps=40)


def kill_and_resume(uninterrupted, workdir, flags, attempts, steps=STEPS):
    delays, checkpoints = random.Random(0), workdir / "checkpoints"
    kills = 0
    for attempt in range(attempts):
        process = start_training(workdir, *flags)
        seen = set(checkpoints.glob("*")) if checkpoints.exists() else set()
        pattern = "*unsealed*" if attempt % 2 else "[0-9]*[0-9]"
        reached = until(lambda seen=seen, p=pattern: set(checkpoints.glob(p)) - seen, process)
        if reached and not attempt % 2:
            time.sleep(delays.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills > attempts / 2, "the run is over too soon to be killed: lengthen it"
    assert start_training(workdir, *flags).wait() == 0, Path(f"{workdir}.out").read_text()
    assert_same_state(workdir, uninterrupted, steps)
    logged = lambda folder: (folder / "metrics.jsonl").read_text().count("\n")
    assert logged(workdir) == logged(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(uninterrupted, tmp_path, number):
    workdir = tmp_path / "stopped"
    process = start_training(workdir, *LONG)
    assert until(lambda: (workdir / "checkpoints" / "00000005").exists(), process)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    output = Path(f"{workdir}.out").read_text()
    assert number.name in output and "the same command goes on from it" in output
    assert start_training(workdir, *LONG).wait() == 0, Path(f"{workdir}.out").read_text()
    assert_same_state(workdir, uninterrupted, STEPS)


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
sys.path.insert(0, {root!r})
from tests.experiments.test_faults import start_training
mount, workdir, out = Path({mount!r}), Path({mount!r}) / "run", {out!r}
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
process = start_training(workdir, *{flags!r}, out=out)
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
print("again", start_training(workdir, *{flags!r}, out=out).wait(), flush=True)
subprocess.run(["cp", "-r", workdir, {copy!r}], check=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's mount namespaces")
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(uninterrupted, tmp_path):
    """A disk of 4 MB of this test's own is filled while the run goes on, then emptied."""
    (tmp_path / "mount").mkdir()
    out = tmp_path / "out"
    names = dict(mount=str(tmp_path / "mount"), copy=str(tmp_path / "copy"), out=str(out))
    script = DISK_FULL.format(root=str(Path(__file__).parents[2]), flags=LONG, **names)
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "exit 1" in result.stdout and "again 0" in result.stdout, out.read_text()
    assert (
        "error:" in out.read_text() and "to go on from the last good checkpoint" in out.read_text()
    )
    assert damage(tmp_path / "copy" / "checkpoints" / f"{STEPS:08d}") is None
    assert_same_state(tmp_path / "copy", uninterrupted, STEPS)


@pytest.mark.slow
def test_too_little_space_ends_before_training(tmp_path):
    (tmp_path / "mount").mkdir()
    command = " ".join(
        [sys.executable, "-m", "experiments.train", *SMALL, f"--workdir={tmp_path}/mount/run"]
    )
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c",
         f"mount -t tmpfs -o size=300k tmpfs {tmp_path}/mount && {command}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
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


@pytest.mark.slow
def test_a_run_is_sampled_with_its_weights_split_over_all_devices(small_run, tmp_path, monkeypatch):
    def images(name):
        result = run_alone(
            "sample", f"--workdir={small_run[0]}", "--count=2", f"--out={tmp_path / name}"
        )
        assert result.returncode == 0, result.stderr
        return np.load(tmp_path / name)["images"].astype(int)

    alone = images("alone.npz")
    monkeypatch.setenv("XLA_FLAGS", virtual_devices.environment(8)["XLA_FLAGS"])
    assert np.abs(images("split.npz") - alone).max() <= 1  # sums in another order
    script = f"""
import jax
from experiments.configuration.runs import open_run
state = open_run({str(small_run[0])!r}).state
arrays = [a for a in jax.tree.leaves(state) if a.size >= 2**12]
assert arrays and all(8 * a.addressable_shards[0].data.size == a.size for a in arrays)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
