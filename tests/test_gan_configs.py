"""Configs of GANs: published settings, a narrowed step of each, and DCGAN's at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_gan, emoji_dcgan, imagenet_gan
from experiments import plan
from experiments.configuration.runs import build
from experiments.inputs.datasets import abstract_batch, training_batches
from genjax.devices import make_mesh
from tests.drawn_state import drawn_state

CHOICES = ("sngan_64", "biggan_64")


def narrowed(choice):
    """Return the config with two widths, of images of 8×8 pixels, and one update of each."""
    config = imagenet_gan.get_config(choice)
    config.unlock()
    generator, discriminator = config.model.generator, config.model.discriminator
    widths = (16, 8)
    generator.update(widths=widths, latent_size=6)
    discriminator.update(widths=widths[::-1], halvings=1)
    if choice == "biggan_64":
        generator.update(shared_features=4, attention=8)
        discriminator.attention = 4
    config.condition.num_classes, config.data.image_shape = 7, (8, 8, 3)
    config.batch_size, config.updates.discriminator = 2, 1
    config.mesh.update(data=-1, fsdp=1)
    return config


def step_of(task):
    """Return a step that says which metrics are finite, and which values move.

    The values are parameters and the vectors of power iteration. No second state is kept.
    """

    @jax.jit
    def step(state, batch, key):
        after, metrics = task.update(state, batch, key)
        moved = (after.params, state.params), (after.discriminator.kept, state.discriminator.kept)
        return (
            jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), metrics),
            [jax.tree.map(lambda a, b: (a != b).any(), *pair) for pair in moved],
        )

    return step


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_step_of_many_classes_runs_narrowed(choice):
    config = narrowed(choice)
    task, random = build(config), np.random.default_rng(0)
    shapes = abstract_batch(config, task)
    batch = {name: random.integers(0, 7, a.shape).astype(a.dtype) for name, a in shapes.items()}
    state = drawn_state(task)
    passed = step_of(task)(state, batch, jax.random.key(1))
    failed = [name for name, holds in jax.tree.leaves_with_path(passed) if not holds]
    assert not [jax.tree_util.keystr(path) for path in failed]


@pytest.mark.slow
def test_a_step_of_many_classes_is_planned_narrowed():
    config = narrowed("sngan_64")
    config.batch_size = 8
    assert plan.plan(config, {"fsdp": 4}, "h100")["multiply_adds"] > 0


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
        penalties = {"biggan_64": {"orthogonality": {"weight": 1e-4}}}.get(choice, {})
        assert config.objective == "hinge" and config.regularizers.to_dict() == penalties


def test_stylegan2_on_cifar10_has_its_authors_settings():
    """`train.py --cfg=cifar --cond=1`: no mirrored images, and a short mapping of G alone."""
    config = cifar10_gan.get_config("stylegan2")
    assert not config.data.flip and config.adaptive_augmentation.name == "ADA"
    task = build(config)
    assert (task.generator.mapping_layers, task.discriminator.mapping_layers) == (2, 8)
    assert (task.generator.style_mixing, task.discriminator.architecture) == (0.0, "original")
    assert "path_length" not in config.regularizers and task.discriminator.group_size == 32
    weights = [config.regularizers.r1.weight, config.averages.ema.steps * config.batch_size]
    assert weights == [0.01 / 2, 500_000]


def test_sngan_s_rate_falls_from_200_000_to_250_000_updates_of_the_generator():
    config = narrowed("sngan_64")
    config.batch_size, config.updates.discriminator = 5, 5
    schedules = build(config).schedules
    for schedule, updates in zip(schedules, (1, 5), strict=True):
        rates = [schedule(1000 * updates * step) for step in (0, 200, 225, 250)]
        np.testing.assert_allclose(rates, [2e-4, 2e-4, 1e-4, 0], rtol=1e-4, atol=1e-10)


@pytest.mark.slow
def test_dcgan_takes_a_step_at_its_published_size(empty_memory):
    """Five layers: a product and four transposed convolutions, on emoji that are here."""
    config = emoji_dcgan.get_config()
    config.batch_size = 1
    task, mesh, key = build(config), make_mesh({"data": 1}, 1), jax.random.key(0)
    batch = training_batches(config, task, mesh)[0]
    assert batch["image"].shape == (1, 64, 64, 3)
    state = drawn_state(task)
    z = jax.ShapeDtypeStruct((1, 100), np.float32)
    _, inner = jax.eval_shape(
        lambda z: task.generator.apply(
            state.generator.variables, z, jnp.zeros(1, int), capture_intermediates=True
        ),
        z,
    )
    made = [inner["intermediates"][f"conv_{i}"]["__call__"][0].shape[1:] for i in range(4)]
    assert inner["intermediates"]["project"]["__call__"][0].shape == (1, 4 * 4 * 1024)
    assert made == [(8, 8, 512), (16, 16, 256), (32, 32, 128), (64, 64, 3)]
    kernels = [p for name, p in state.params["discriminator"].items() if name != "label_embedding"]
    assert sum("kernel" in layer for layer in kernels) == 5
    assert all(jax.tree.leaves(step_of(task)(state, batch, key)))
