"""Trains a small BigBiGAN with R1, and encoders of a GAN's run in FOLDER, over meshes.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.bidirectional_run \
    FOLDER bigbigan 'encoder={"data": 2, "fsdp": 4}'

Prints losses and norms, a line of JSON for each.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from configs.digits_gan_inverse import get_config
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import Checkpoints
from genjax.training.loop import compile_update
from genjax.training.placement import place_frozen
from genjax.training.workdir import record_config
from tests.virtual_devices import placed_first_state

BATCH_SIZE, STEPS = 16, 3


def narrow(config, **changes):
    """The config with small networks, for a few steps."""
    config.unlock()
    sizes = dict(width=4, doublings=2, hidden=8)
    if config.task == "Inversion":
        config.model.update(sizes)
        config.optimizer.update(eps=0.1, warmup=0.0)
    else:
        config.model.generator.update(width=4, latent_size=6)
        config.model.encoder.update(sizes)
        config.model.discriminator.update(sizes)
        for optimizer in config.optimizer.values():
            optimizer.eps = 0.1  # so that no first step of Adam is ±1 where a gradient is about 0
    config.batch_size, config.num_steps, config.checkpoint.every = BATCH_SIZE, 4, 2
    config.evaluation.measures = {}
    config.update(changes)
    return config


def small_config(choice: str, generator_run: str | None = None, **changes):
    config = narrow(get_config(choice), **changes)
    if generator_run:
        config.generator_run = generator_run
    return config


def untrained_run(folder: Path, config) -> Path:
    """Write a run of a GAN of the config, as it is before its first step; return its folder."""
    task = build(config)
    folder.mkdir(parents=True)
    record_config(folder, config.to_dict(), ())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, jax.jit(task.init)(jax.random.key(0)))
    return folder


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH_SIZE, 8, 8, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, BATCH_SIZE, np.int32)}


def run(choice: str, axes: dict[str, int], folder: str) -> list[dict[str, float]]:
    if choice == "encoder":
        config = small_config(choice, folder)
    else:
        config = small_config(choice, regularizers=dict(r1=dict(weight=1.0)))
    task, mesh, key = build(config), make_mesh(axes, BATCH_SIZE), jax.random.key(0)
    (state, abstract), frozen, rows = placed_first_state(task, mesh), place_frozen(task, mesh), []
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract, mesh, frozen)
        for step in range(STEPS):
            state, metrics = update(state, place_batch(batch(step), mesh), key, *frozen)
            rows.append(
                {
                    name: float(metrics[name])
                    for name, (_, count) in zip(metrics.names, metrics.table, strict=True)
                    if count
                }
            )
    return rows


if __name__ == "__main__":
    folder, *choices = sys.argv[1:]
    for each in choices:
        name, _, mesh_axes = each.partition("=")
        print(json.dumps(run(name, json.loads(mesh_axes or '{"data": -1}'), folder)))
