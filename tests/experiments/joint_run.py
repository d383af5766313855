"""Trains sound and video for some steps over meshes, and prints the losses of each as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.joint_run FOLDER
'{"data": 8}'
"""

import json
import sys

import jax

from experiments.configuration.runs import build
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import training_batches
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import init_state, place_frozen
from genjax.training.loop import compile_update
from tests.experiments import small_sounding

STEPS = 3


def run(folder: str, axes: dict[str, int]) -> list[dict[str, float]]:
    config = small_sounding.config(folder)
    task, key = build(config), jax.random.key(1)
    mesh = make_mesh(axes, config.batch_size)
    batches = training_batches(config, task, mesh)
    state, frozen, rows = init_state(task, jax.random.key(0), mesh), place_frozen(task, mesh), []
    with jax.set_mesh(mesh):
        update = compile_update(task, state, mesh, frozen)
        for step in range(STEPS):
            state, metrics = update(state, place_batch(batches[step], mesh), key, *frozen)
            rows.append(dict(zip(metrics.names, metrics.table[:, 0].tolist(), strict=True)))
    return rows


if __name__ == "__main__":
    Prompts._encode = lambda self, prompts: small_sounding.words(prompts)
    for axes in sys.argv[2:]:
        print(json.dumps(run(sys.argv[1], json.loads(axes))))
