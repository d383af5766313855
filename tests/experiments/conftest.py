import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The default experiment, small: a step takes milliseconds.
SMALL = [
    f"--config={ROOT}/configs/digits_flow.py",
    "--config.num_steps=40",
    "--config.optimizer.warmup=5",
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.model.num_heads=2",
    "--config.log_every=10",
    "--config.checkpoint.every=10",
    "--config.sampling.every=20",
    "--config.sampling.per_class=2",
    "--config.sampling.num_steps=4",
    "--config.evaluation.num_samples=360",
]


def program(name, *flags, **options):
    """Runs `python -m experiments.<name>` to its end."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def start(name, *flags):
    """Starts `python -m experiments.<name>`, whose output is to be read, errors included."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_training(workdir, *flags, out=None):
    """Starts training in the background; its output is added to `out`, the file `workdir`.out if not given."""
    command = [sys.executable, "-m", "experiments.train", *SMALL, f"--workdir={workdir}", *flags]
    with open(out or f"{workdir}.out", "a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A finished run of the small experiment; not to be written to."""
    workdir = tmp_path_factory.mktemp("small") / "run"
    result = program("train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir, result
