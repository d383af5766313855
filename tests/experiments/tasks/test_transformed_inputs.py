"""A GAN's images of transformed inputs, and which networks have them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fashion_gan
from experiments.configuration.runs import build
from experiments.launch.experiment import Experiment
from experiments.tasks import transformed_inputs
from experiments.tasks.programs import in_float32
from genjax.models.gans import stylegan3
from genjax.training.workdir import Config


def small(choice):
    config = fashion_gan.get_config(choice)
    config.unlock()
    config.data.image_shape = (16, 16, 1)
    config.model.generator.update(resolution=16, latent_size=4, w_size=8)
    config.model.generator.update(channel_base=64, channel_max=8, mapping_layers=1)
    config.model.discriminator.update(resolution=16, channel_base=64, channel_max=8)
    if choice == "stylegan3":
        config.model.generator.update(num_layers=3, num_critical=1)
    return config


@pytest.mark.parametrize("choice", ["stylegan2", "stylegan3"])
def test_an_image_depends_on_its_own_latent_and_transform(choice):
    config = small(choice)
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    sampling = Config(config.sampling)
    transformed = task.functions(state, sampling)["transformed"]
    moved = np.eye(3, dtype=np.float32)
    moved[0, 2] = 0.1
    both = np.stack([np.eye(3, dtype=np.float32), moved])
    images = transformed(np.zeros(4, int), np.array([0, 0, 1, 1]), np.tile(both, (2, 1, 1)))
    again = transformed(np.zeros(4, int), np.array([1, 5, 0, 0]), both[[0, 0, 1, 0]])
    np.testing.assert_allclose(again[[3, 2, 0]], images[:3], atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-3 < np.abs(images[0] - images[2]).max()
    generator, variables = task.generator, task.variables(state, sampling.weights)

    @jax.jit
    def with_and_without(variables):
        w = generator.apply(variables, jnp.ones((1, 4)), jnp.zeros(1, int), method="map")
        call = lambda **options: generator.apply(variables, w, method="synthesize", **options)
        return call(transform=jnp.eye(3)[None]), call()

    np.testing.assert_allclose(*with_and_without(variables), atol=1e-5)


def test_images_are_in_float32_whatever_the_generator_computes_in(monkeypatch):
    """Half precision is coarser than what generators reach."""
    programs = []

    def on_mesh(mesh, function, generator):
        precision = lambda: jax.config.jax_default_matmul_precision
        return lambda *inputs: programs.append((generator.dtype, precision()))

    monkeypatch.setattr(transformed_inputs, "on_mesh", on_mesh)
    generator = stylegan3.Generator(resolution=16, dtype="float16")
    sampling = Config(seed=0, truncation=1.0)
    images = transformed_inputs.transformed_images(generator, {}, sampling, None)
    images(np.zeros(1, int), np.zeros(1, int), np.eye(3, dtype=np.float32)[None])
    assert programs == [(jnp.float32, "highest")]
    own = nn.Dropout(0.5)  # a network of your own may have no dtype
    assert in_float32(own) is own


def test_training_updates_the_statistics_of_stylegan3():
    """Each layer's power is a moving average of its input's mean square, as is the mean of w."""
    config = small("stylegan3")
    config.model.generator.magnitude_decay = 0.75
    task = build(config)
    player = jax.jit(task.init)(jax.random.key(0)).generator
    generate = jax.jit(lambda player, key: task._generate(player, key, jnp.zeros(8, int), 8)[1])
    kept, again = (generate(player, jax.random.key(1)) for _ in range(2))
    before, after = (each["moving_average"] for each in (player.kept, kept))
    assert np.all(before["w_average"] == 0) and np.any(after["w_average"] != 0)
    for name, layer in after.items():
        if name.startswith("layers_"):
            assert 0.75 < layer["power"] != before[name]["power"] == 1
    same = jax.tree.map(np.array_equal, kept["waves"], player.kept["waves"])
    assert jax.tree.all(same)
    twice = generate(player.replace(kept=kept), jax.random.key(1))["moving_average"]
    # The first layer's input does not depend on powers: 1 → p + ¾(1 − p) → p + ¾²(1 − p).
    first, second = (each["layers_0"]["power"] for each in (after, twice))
    np.testing.assert_allclose(second - first, 0.75 * (first - 1), rtol=1e-4)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, again))


def test_a_learned_constant_cannot_be_moved():
    config = small("stylegan2")
    config.model.generator.fourier_input = False
    with pytest.raises(ValueError, match="is Equivariance, which needs transformed; a GAN gives"):
        Experiment.from_config(config)
