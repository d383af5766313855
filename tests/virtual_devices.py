"""Run programs on virtual devices of the CPU; their number is set before JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from genjax.training import abstract_state

ROOT = Path(__file__).parents[1]


def environment(num_devices: int) -> dict[str, str]:
    """Return this process' environment, for a program on `num_devices` virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run(arguments: list[str], num_devices: int) -> str:
    """Return what Python with `arguments` prints on `num_devices` virtual devices."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(num_devices),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def lines_of(module: str, num_devices: int, *arguments: str) -> list[Any]:
    """Return what `python -m module arguments…` prints, each line read as JSON."""
    return [json.loads(line) for line in run(["-m", module, *arguments], num_devices).splitlines()]


def placed_first_state(task: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Return a task's first state over a mesh, with shapes, types and shardings of its arrays.

    One device makes the state, so XLA does not split its program over the mesh. `autoencoder_run`
    and others of `tests/experiments` take `init_state`, which does.
    """
    key = jax.random.key(0)
    abstract = abstract_state(task, key, mesh)
    state = jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0})(key)
    return jax.device_put(state, jax.tree.map(lambda a: a.sharding, abstract)), abstract
