"""Several processes train one model: the same losses, one's death, and resuming with others."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from genjax.training.checkpoints import damage, saved_steps
from tests import virtual_devices
from tests.experiments.launching import ROOT, SMALL, run

STEPS = 40
RUN = [
    *SMALL,
    f"--config.num_steps={STEPS}",
    "--config.log_every=1",
    "--config.checkpoint.every=5",
    "--config.sampling.every=1000",
    "--config.sampling.per_class=1",
    "--config.sampling.num_steps=2",
    "--config.evaluation.measures={}",
]
SPLIT = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
# seconds after another process' death; experiments/launch/runtime.py's heartbeat is a third of it
ENDS_WITHIN = 60


def free_port(first, last):
    for port in random.sample(range(first, last), 100):  # other tests may look for one, too
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("localhost", port))
            return port


def start(
    workdir, devices, processes=1, flags=(), slurm=False, program=("-m", "experiments.train")
):
    """Start training on some virtual devices in each process; process i writes `workdir`.i."""
    port = free_port(61440, 65535)
    started = []
    for process in range(processes):
        command = [sys.executable, *program, *RUN, f"--workdir={workdir}", *flags]
        variables = virtual_devices.environment(devices)
        if slurm:  # JAX makes the port of the job's number
            step = dict(
                JOB_ID=port - 61440,
                STEP_NODELIST="localhost",
                NTASKS=processes,
                PROCID=process,
                LOCALID=0,
            )
            variables |= {f"SLURM_{name}": str(value) for name, value in step.items()}
            command += ["--coordinator=auto"]
        elif processes > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            command += [f"--process_id={process}"]
        with open(f"{workdir}.{process}", "w") as out:
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, stdout=out, stderr=out, env=os.environ | variables
                )
            )
    return started


def output(workdir, process=0):
    return Path(f"{workdir}.{process}").read_text()


def finish(workdir, *args, **options):
    for number, process in enumerate(start(workdir, *args, **options)):
        assert process.wait(180) == 0, output(workdir, number)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row])


def assert_same_losses(workdir, expected):
    """2e-6: sums of 64 examples in float32 (6e-8 each), in another order, over all steps."""
    assert len(losses(workdir)) == STEPS
    np.testing.assert_allclose(losses(workdir), expected, rtol=2e-6)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("processes") / "one"
    finish_here(workdir)
    return losses(workdir)


def finish_here(workdir):
    """Train in this process, on its one device."""
    result = run("train", *RUN, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr


def interrupt(workdir, number, victim, **options):
    """Start two processes, and send a signal to one of them after a save.

    Return both exit codes, and the seconds until the processes ended.
    """
    before = saved_steps(workdir / "checkpoints")
    processes = start(workdir, 2, 2, SPLIT, **options)
    deadline = time.monotonic() + 120
    while saved_steps(workdir / "checkpoints") == before:
        assert processes[victim].poll() is None and time.monotonic() < deadline, output(
            workdir, victim
        )
        time.sleep(0.001)
    processes[victim].send_signal(number)
    began = time.monotonic()
    codes = [process.wait(ENDS_WITHIN) for process in processes]
    return codes, time.monotonic() - began


@pytest.mark.slow
def test_one_process_stopped_or_killed_ends_the_other_and_any_number_goes_on(expected, tmp_path):
    """A signal stops two processes after a save. Two go on, and one is killed.

    Then two go on to the end, and so does one process with four devices.
    """
    workdir = tmp_path / "run"
    codes, _ = interrupt(workdir, signal.SIGTERM, victim=1, slurm=True)
    assert codes == [128 + signal.SIGTERM] * 2, output(workdir) + output(workdir, 1)
    stopped = len(losses(workdir))
    for process in (0, 1):
        assert f"SIGTERM: saving after step {stopped} " in output(workdir, process)
    assert stopped < STEPS and saved_steps(workdir / "checkpoints")[-1] == stopped
    for checkpoint in (workdir / "checkpoints").iterdir():
        assert damage(checkpoint) is None and not list(checkpoint.glob("manifest.*.json"))

    codes, seconds = interrupt(workdir, signal.SIGKILL, victim=1)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
    assert seconds < ENDS_WITHIN
    assert "does not answer" in output(workdir) and "Start the same command again" in output(
        workdir
    )
    killed = len(losses(workdir))
    assert stopped < killed < STEPS, "the run was over too soon to be killed: lengthen it"

    alone = Path(shutil.copytree(workdir, tmp_path / "alone"))
    finish(workdir, 2, 2, SPLIT)
    assert_same_losses(workdir, expected)
    finish(alone, 4, flags=["--config.mesh.data=-1", "--config.mesh.fsdp=2"])
    assert_same_losses(alone, expected)


EACH_ELSEWHERE = """
import runpy, sys
from experiments.launch import lock
lock.SHARED_SECONDS = 1.0
folder = [each for each in sys.argv if each.startswith("--workdir")][0]
sys.argv += [folder + "/" + sys.argv[-1][-1]]
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_processes_on_two_folders_end_before_training_and_say_so(tmp_path):
    """Process i is started with the folder `run/i`, as on machines that share no file system."""
    workdir = tmp_path / "run"
    processes = start(workdir, 1, 2, program=("-c", EACH_ELSEWHERE))
    assert [process.wait(120) for process in processes] == [1, 1]
    for number in (0, 1):
        (message,) = re.findall("^error: .*", output(workdir, number), re.M)
        assert (
            f"--workdir={workdir}/{number} is not one folder for all: process 1 does not see"
            in message
        )
        assert "Traceback" not in output(workdir, number)
        assert not (workdir / str(number)).exists()  # a failed start leaves no empty folder
