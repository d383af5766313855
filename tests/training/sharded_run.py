"""Trains a small diffusion task over meshes, and prints what each run did as a line of JSON.

With `--save` the last mesh saves a checkpoint on its way.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.training.sharded_run '[{"data":
8}]'
"""

import argparse
import json
import math
import re

import jax
import numpy as np

from configs.digits_flow import get_config
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.collectives import collectives
from genjax.devices.mesh import SMALL, place_batch
from genjax.training import Checkpoints, abstract_state
from genjax.training.loop import compile_update

BATCH_SIZE, STEPS, SAVED = 32, 30, 20


def small_config():
    config = get_config()
    config.model.update(width=32, depth=2, num_heads=2, unroll=1)
    config.batch_size, config.num_steps = BATCH_SIZE, 100
    config.optimizer.warmup = 10.0
    return config


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH_SIZE, 8, 8, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, BATCH_SIZE, np.int32)}


def run(axes: dict[str, int], save: str | None, restore: str | None) -> dict:
    devices = jax.devices()[: math.prod(axes.values())]
    mesh, task, key = make_mesh(axes, BATCH_SIZE, devices), build(small_config()), jax.random.key(0)
    abstract = abstract_state(task, key, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    if restore:
        with Checkpoints(restore) as checkpoints:
            state = checkpoints.restore(checkpoints.latest(), abstract)
    else:
        init = jax.jit(task.init, out_shardings=shardings).lower(key).compile()
        state = init(key)
    losses = []
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract, mesh).lower(state, batch(0), key).compile()
        for step in range(int(state.step), STEPS):
            if save and step == SAVED:
                with Checkpoints(save) as checkpoints:
                    checkpoints.save(step, state)
            state, metrics = update(state, place_batch(batch(step), mesh), key)
            losses.append(float(metrics["loss"]))
    leaves = jax.tree.leaves(state)
    large = lambda tree: sum(a.nbytes for a in jax.tree.leaves(tree) if a.size >= SMALL)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): a
        for path, a in jax.tree.leaves_with_path(state.params)
    }
    elements = lambda pattern: sum(a.size for name, a in names.items() if re.search(pattern, name))
    return {
        "axes": axes,
        "losses": losses,
        "parameters": sum(a.size for a in jax.tree.leaves(state.params)),
        "split_over_tensor": elements(
            "query_key_value|mlp_in|modulation/|(projection|mlp_out)/kernel"
        ),
        "parameters_of_tokens": elements("patch_embedding|head|blocks/[^m]|blocks/mlp"),
        "state_bytes": sum(a.nbytes for a in leaves),
        "large_bytes": large(state),
        "large_parameter_bytes": {name: large(part) for name, part in state.params.items()},
        "bytes_per_device": sum(a.addressable_shards[0].data.nbytes for a in leaves),
        "init_temporary_bytes": None if restore else init.memory_analysis().temp_size_in_bytes,
        "collectives": collectives(update, mesh),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("meshes", type=json.loads)
    parser.add_argument("--save")
    parser.add_argument("--restore")
    arguments = parser.parse_args()
    for axes in arguments.meshes:
        save = arguments.save if axes is arguments.meshes[-1] else None
        print(json.dumps(run(axes, save, arguments.restore)))
