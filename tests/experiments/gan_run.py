"""Trains small GANs over meshes, and prints their losses and norms as a line of JSON each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.gan_run ada
'ada={"data": 2, "tensor": 4}'
"""

import json
import sys

import jax
import numpy as np

from configs.digits_gan import get_config
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training.loop import compile_update
from tests.virtual_devices import placed_first_state

BATCH_SIZE, STEPS = 32, 3


def small_config(choice: str):
    """Return a narrow config of a choice, with what looks at the whole batch.

    "stylegan2" has the minibatch deviation, and at every other step R1 and the path length. "ada"
    is a DCGAN with batch norm, whose augmentation follows r_t. "vit_gan" has R2.
    """
    config = get_config("dcgan" if choice == "ada" else choice)
    config.unlock()
    config.batch_size, config.num_steps = BATCH_SIZE, 100
    config.model.generator.latent_size = 8
    for optimizer in config.optimizer.values():
        optimizer.eps = 0.1  # so that no first step of Adam is ±1 where a gradient is about 0
    if choice == "vit_gan":
        config.model.generator.update(width=16, depth=1, num_heads=2)
        config.model.discriminator.update(width=16, depth=1, num_heads=2)
        config.regularizers = dict(r2=dict(weight=0.2))
    if choice == "ada":
        config.model.generator.width = config.model.discriminator.width = 8
        config.model.discriminator.spectral_norm = False
        config.objective, config.regularizers = "non_saturating", {}
        config.adaptive_augmentation = dict(  # its probability moves twice in the run
            name="ADA", changes=("color",), images_to_one=100.0, every=1, target=-0.9
        )
    if choice == "stylegan2":
        narrow = dict(channel_base=64, channel_max=16, mapping_layers=1)
        config.model.generator.update(narrow, w_size=16)
        config.model.discriminator.update(narrow)
        config.regularizers = dict(
            r1=dict(weight=0.5, every=2), path_length=dict(weight=2.0, every=2)
        )
    return config


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH_SIZE, 8, 8, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, BATCH_SIZE, np.int32)}


def run(choice: str, axes: dict[str, int]) -> list[dict[str, float]]:
    task, mesh, key = build(small_config(choice)), make_mesh(axes, BATCH_SIZE), jax.random.key(0)
    (state, abstract), rows = placed_first_state(task, mesh), []
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract, mesh)
        for step in range(STEPS):
            state, metrics = update(state, place_batch(batch(step), mesh), key)
            rows.append(
                {
                    name: float(metrics[name])
                    for name, (_, count) in zip(metrics.names, metrics.table, strict=True)
                    if count
                }
            )
    return rows


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        choice, _, axes = argument.partition("=")
        print(json.dumps(run(choice, json.loads(axes) if axes else {"data": -1})))
