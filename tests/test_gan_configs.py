"""Configs of GANs: published settings, a narrowed step of each, and DCGAN's at full size."""

import jax
import numpy as np
import pytest

from configs import emoji_dcgan, imagenet_gan
from experiments import plan
from experiments.configuration.runs import build
from experiments.inputs.datasets import abstract_batch, training_batches
from genjax.devices import make_mesh
from genjax.training.sampling import sample

WIDTHS = {"sngan_64": (8, 8, 4, 4, 4), "biggan_64": (16, 16, 16, 8, 8)}


def narrowed(choice):
    config = imagenet_gan.get_config(choice)
    config.unlock()
    networks, widths = config.model, WIDTHS[choice]
    networks.generator.update(widths=widths, latent_size=10)
    networks.discriminator.widths = widths[::-1]
    if choice == "biggan_64":
        networks.generator.shared_features = 4
    config.condition.num_classes = 7
    config.batch_size = 2 * config.updates.discriminator
    config.mesh.update(data=-1, fsdp=1)
    return config


@pytest.mark.parametrize("choice", WIDTHS)
def test_a_step_of_many_classes_runs_narrowed(choice):
    config = narrowed(choice)
    task, random = build(config), np.random.default_rng(0)
    shapes = abstract_batch(config, task)
    batch = {name: random.integers(0, 7, a.shape).astype(a.dtype) for name, a in shapes.items()}
    state = jax.jit(task.init)(jax.random.key(0))
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9  # attention starts at 0
    vectors = jax.tree.map(
        lambda a, b: bool((a != b).any()), after.discriminator.kept, state.discriminator.kept
    )
    assert all(jax.tree.leaves(vectors))  # power iteration goes on
    samples = sample(task, after, np.arange(3), config.sampling)
    assert samples.shape == (3, 64, 64, 3) and samples.dtype == np.uint8


@pytest.mark.parametrize("choice", WIDTHS)
def test_a_step_of_many_classes_is_planned_narrowed(choice):
    config = narrowed(choice)
    config.batch_size *= 4
    sheet = plan.plan(config, {"fsdp": 4}, "h100")
    assert sheet["multiply_adds"] > 0


def test_networks_of_many_classes_have_their_authors_settings():
    """Learning rates of generator and discriminator, β₁, β₂, updates and images in each."""
    recipes = {"sngan_64": (2e-4, 2e-4, 0.0, 0.9, 5, 64)}
    recipes["biggan_64"] = (5e-5, 2e-4, 0.0, 0.999, 2, 2048)
    for choice, recipe in recipes.items():
        config = imagenet_gan.get_config(choice)
        generator, discriminator = config.optimizer.generator, config.optimizer.discriminator
        updates = config.updates.discriminator
        rates = generator.learning_rate, discriminator.learning_rate
        assert (*rates, generator.b1, generator.b2, updates, config.batch_size // updates) == recipe
        assert config.objective == "hinge" and not config.regularizers


def test_sngan_s_rate_falls_from_200_000_to_250_000_updates_of_the_generator():
    schedules = build(narrowed("sngan_64")).schedules
    for schedule, updates in zip(schedules, (1, 5), strict=True):
        rates = [schedule(1000 * updates * step) for step in (0, 200, 225, 250)]
        np.testing.assert_allclose(rates, [2e-4, 2e-4, 1e-4, 0], rtol=1e-4, atol=1e-10)


def test_dcgan_takes_a_step_at_its_published_size():
    """Five layers: a product and four transposed convolutions, on emoji that are here."""
    config = emoji_dcgan.get_config()
    config.batch_size = 2
    task, mesh, key = build(config), make_mesh({"data": 1}, 2), jax.random.key(0)
    batch = training_batches(config, task, mesh)[0]
    assert batch["image"].shape == (2, 64, 64, 3)
    state = jax.jit(task.init)(key)
    z = jax.ShapeDtypeStruct((1, 100), np.float32)
    _, inner = jax.eval_shape(
        lambda z: task.generator.apply(
            state.generator.variables, z, np.zeros(1, np.int32), capture_intermediates=True
        ),
        z,
    )
    made = [inner["intermediates"][f"conv_{i}"]["__call__"][0].shape[1:] for i in range(4)]
    assert inner["intermediates"]["project"]["__call__"][0].shape == (1, 4 * 4 * 1024)
    assert made == [(8, 8, 512), (16, 16, 256), (32, 32, 128), (64, 64, 3)]
    kernels = [p for name, p in state.params["discriminator"].items() if name != "label_embedding"]
    assert sum("kernel" in layer for layer in kernels) == 5
    after, metrics = jax.jit(task.update)(state, batch, key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert all(jax.tree.leaves(moved))
    samples = sample(task, after, np.arange(2), config.sampling)
    assert samples.shape == (2, 64, 64, 3) and samples.std() > 0
