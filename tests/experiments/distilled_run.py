"""Trains small students over meshes; prints losses and how the teacher was kept, a JSON line each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.distilled_run TEACHER
Lagrangian 'MeanFlow={"data": 2, "fsdp": 4}'
"""

import json
import sys

import jax
import numpy as np

from configs import digits_distillation, digits_flow
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import abstract_state, init_state
from genjax.training.loop import compile_update
from genjax.training.placement import place_frozen

BATCH_SIZE, STEPS = 16, 3
TAUGHT = ("Lagrangian", "DMD2")


def narrow(config, **changes):
    """The config with a network of one narrow block, for a few steps."""
    config.model.update(patch_size=4, width=64, depth=1, num_heads=2, unroll=1)
    config.batch_size, config.num_steps = BATCH_SIZE, 4
    config.optimizer.warmup = 1.0
    config.checkpoint.every = 2
    config.evaluation.measures = {}
    config.update(changes)
    return config


def teacher_config():
    return narrow(digits_flow.get_config())


def student_config(method: str, teacher: str | None = None, **changes):
    config = narrow(digits_distillation.get_config(method), **changes)
    config.teacher = teacher
    if teacher:
        config.model.time_scale = 1000.0  # the teacher's
    return config


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH_SIZE, 8, 8, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, BATCH_SIZE, np.int32)}


def shards(tree) -> dict[str, tuple[int, ...]]:
    """The shape of a device's part of each array, by the array's name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): a.addressable_shards[0].data.shape
        for path, a in jax.tree.leaves_with_path(tree)
    }


def run(method: str, axes: dict[str, int], teacher: str | None) -> dict:
    mesh, task = make_mesh(axes, BATCH_SIZE), build(student_config(method, teacher))
    key = jax.random.key(0)
    state, frozen, losses = init_state(task, key, mesh), place_frozen(task, mesh), []
    before = jax.tree.map(np.asarray, frozen)
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract_state(task, key, mesh), mesh, frozen)
        for step in range(STEPS):
            state, metrics = update(state, place_batch(batch(step), mesh), key, *frozen)
            losses.append(float(metrics["loss"]))
    same = jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, frozen))
    student, theirs = shards(state.params), shards(frozen[0]["teacher"] if frozen else {})
    return {
        "losses": losses,
        "teacher_kept": all(jax.tree.leaves(same)),
        "split_otherwise": sorted(name for name in theirs if theirs[name] != student[name]),
        "elements_per_device": sum(int(np.prod(part)) for part in theirs.values()),
    }


if __name__ == "__main__":
    folder, *choices = sys.argv[1:]
    for choice in choices:
        method, _, axes = choice.partition("=")
        found = run(
            method, json.loads(axes or '{"data": -1}'), folder if method in TAUGHT else None
        )
        print(json.dumps(found))
