import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.unets.song_unet import (
    DDPMpp_CIFAR10,
    DDPMpp_FFHQ64,
    NCSNpp_CIFAR10,
    NCSNpp_FFHQ64,
    SongUNet,
    fourier_embedding,
    geometric_embedding,
)
from genjax.nn.fir import BINOMIAL

# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
key, time, label = jax.random.key(0), jnp.zeros(1), jnp.zeros(1, int)
small = functools.partial(SongUNet, width=8, multipliers=(1, 2), blocks=1, num_classes=3)


@pytest.mark.parametrize(
    ("build", "side", "unconditional", "by_class"),
    [
        (DDPMpp_CIFAR10, 32, 55_733_891, 55_735_299),
        (NCSNpp_CIFAR10, 32, 56_397_827, 56_400_643),
        (DDPMpp_FFHQ64, 64, 61_805_571, 61_806_979),
        (NCSNpp_FFHQ64, 64, 62_761_091, 62_763_907),
    ],
)
def test_published_parameter_counts(build, side, unconditional, by_class):
    """Count parameters as EDM's code does with its training options: nine augmentation labels."""
    network = build(num_classes=10, augmentation_features=9)
    params = jax.eval_shape(network.init, key, jnp.zeros((1, side, side, 3)), time, label)["params"]
    size = lambda params: sum(a.size for a in jax.tree.leaves(params))
    assert size(params) == by_class
    assert by_class - size(params["label_embedding"]) == unconditional


def test_geometric_frequencies_are_from_1_to_1_over_10000():
    sines = geometric_embedding(jnp.array([1e-3]), 8)[0, 4:]
    np.testing.assert_allclose(sines, 1e-3 * 10_000.0 ** -np.array([0, 1 / 3, 2 / 3, 1]), rtol=1e-5)


def test_random_frequencies_have_the_given_deviation():
    """The mean of cos(2πwa)·cos(2πwb) + sin(2πwa)·sin(2πwb) over w is a mean of cosines.

    Its expectation E cos(2πw(a − b)) is exp(−2π²s²(a − b)²).
    """
    x, features, scale = jnp.array([0.3, 0.31, 0.32, 0.5]), 2 * 100_000, 16.0
    embedding = np.asarray(fourier_embedding(x, features, scale))
    products = embedding @ embedding.T / (features / 2)
    distances = np.subtract.outer(x, x)
    expected = np.exp(-2 * np.pi**2 * scale**2 * distances**2)
    # 100,000 cosines have a variance of at most 1 each: four standard errors.
    np.testing.assert_allclose(products, expected, atol=4 / np.sqrt(100_000))


def test_random_frequencies_never_change():
    """Other numbers than MT19937's with seed 0 would break trained networks silently."""
    sines = fourier_embedding(jnp.array([1e-5]), 4, 16.0)[0, 2:]
    expected = 1e-5 * 2 * np.pi * 16 * np.array([1.7640523, 0.4001572])
    np.testing.assert_allclose(sines, expected, rtol=1e-5)


@pytest.mark.parametrize("fields", [dict(), dict(fourier_scale=2.0)])
def test_time_scale_multiplies_t(fields):
    smallest = functools.partial(small, width=4, multipliers=(1,), blocks=0, **fields)
    x, t, labels = jax.random.normal(key, (3, 2, 2, 2)), jnp.array([0.1, 0.5, 0.9]), jnp.arange(3)
    random = np.random.default_rng(0)
    draw = lambda a: random.standard_normal(a.shape, np.float32)
    params = jax.tree.map(draw, jax.eval_shape(smallest().init, key, x, t, labels))
    apply = lambda scale: quick_jit(smallest(time_scale=scale).apply)
    once = apply(1.0)
    expected = once(params, x, 4 * t, labels)
    np.testing.assert_allclose(apply(4.0)(params, x, t, labels), expected, atol=1e-5)
    assert np.abs(once(params, x, t, labels) - expected).max() > 0.01


def test_the_last_decoder_block_of_a_level_attends_alone():
    """All blocks of the encoder's level attend, as in EDM's code."""
    network = small(blocks=2, attention_levels=(0,))
    params = jax.eval_shape(network.init, key, jnp.zeros((1, 4, 4, 1)), time, label)["params"]
    attending = {name for name, block in params.items() if "attention" in block}
    assert attending == {"encoder_0_0", "encoder_0_1", "middle_0", "decoder_0_2"}


def test_ncsnpp_adds_the_image_to_every_level():
    """The first of these convolutions reads the image, the next one the previous sum."""
    network = small(multipliers=(1, 1, 1), fourier_scale=16.0, taps=BINOMIAL, residual_input=True)
    params = jax.eval_shape(network.init, key, jnp.zeros((1, 8, 8, 2)), time, label)["params"]
    shapes = {name: params[name]["kernel"].shape for name in params if "image" in name}
    assert shapes == {"image_1": (3, 3, 2, 8), "image_2": (3, 3, 8, 8)}


def test_initial_weights_are_those_of_the_authors():
    """Xavier's √(6/(fan_in + fan_out)), times √0.2 for attention, times 1e-5 for last layers."""
    network = small(width=32, multipliers=(1,), blocks=0)
    params = quick_jit(network.init)(key, jnp.zeros((1, 2, 2, 32)), time, label)["params"]
    block = params["middle_0"]
    for layer, fans, gain in (
        (params["linear_in"], 32 + 128, 1),
        (block["conv_in"], 9 * (32 + 32), 1),
        (block["conv_out"], 9 * (32 + 32), 1e-5),
        (block["attention"]["query_key_value"], 32 + 96, np.sqrt(0.2)),
        (block["attention"]["projection"], 32 + 32, 1e-5),
        (params["conv_out"], 9 * (32 + 32), 1e-5),
    ):
        bound = gain * np.sqrt(6 / fans)
        # There are 1,024 values or more, so the largest is within a hundredth of the bound.
        assert 0.99 * bound < np.abs(layer["kernel"]).max() <= bound * (1 + 1e-6)
        assert np.all(layer["bias"] == 0)
