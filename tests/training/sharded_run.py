"""Trains a small diffusion task over the meshes of the command line, and prints what each did as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.training.sharded_run '[{"data": 8}]'
"""

import json
import math
import sys

import jax
import numpy as np

from configs.digits_flow import get_config
from experiments.configuration import build
from genjax.training import abstract_state, init_state, make_mesh
from genjax.training.collectives import collectives
from genjax.training.loop import compile_update
from genjax.training.mesh import place_batch

BATCH_SIZE = 32


def small_config():
    config = get_config()
    config.model.update(width=32, depth=3, num_heads=2, unroll=1)
    config.batch_size, config.num_steps = BATCH_SIZE, 100
    config.optimizer.warmup_steps = 10
    return config


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH_SIZE, 8, 8, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, BATCH_SIZE, np.int32)}


def run(axes: dict[str, int], num_steps: int = 50) -> dict:
    mesh, task = make_mesh(axes, BATCH_SIZE), build(small_config())
    key = jax.random.key(0)
    state = init_state(task, key, mesh)
    bytes_per_device = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract_state(task, key, mesh), mesh)
        compiled = update.lower(state, batch(0), key).compile()
        losses = []
        for step in range(num_steps):
            state, metrics = update(state, place_batch(batch(step), mesh), key)
            losses.append(float(metrics["loss"]))
    return {
        "axes": axes,
        "devices": math.prod(axes.values()),
        "losses": losses,
        "bytes_per_device": bytes_per_device,
        "parameters": sum(a.size for a in jax.tree.leaves(state.params)),
        "collectives": collectives(compiled, mesh),
    }


if __name__ == "__main__":
    for axes in json.loads(sys.argv[1]):
        print(json.dumps(run(axes)))
