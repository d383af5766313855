import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_tiny import AutoencoderTiny

small = functools.partial(AutoencoderTiny, encoder_blocks=(1, 1), decoder_blocks=(1, 1), width=8)


@pytest.fixture(scope="module")
def variables():
    """Make variables without `init`, whose many small draws take long to compile."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    return jax.tree.map(lambda a: 0.2 * random.standard_normal(a.shape, np.float32), shapes)


@pytest.mark.parametrize(("channels", "expected"), [(4, 2_445_063), (16, 2_458_899)])
def test_parameter_counts(channels, expected):
    """64 channels: ten blocks a side of three 3×3 convolutions, three without biases, both ends."""
    network = AutoencoderTiny(channels)
    output, variables = jax.eval_shape(
        network.init_with_output,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32),
    )
    conv = lambda inputs, outputs: 9 * inputs * outputs + outputs
    side = 10 * 3 * conv(64, 64) + 3 * 9 * 64**2
    assert expected == 2 * side + conv(3, 64) + conv(64, channels) + conv(channels, 64) + conv(
        64, 3
    )
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert output.shape == (1, 16, 24, 3) and network.factor == 8


def test_ranges(variables):
    """With zero weights only the last bias remains: an image of 2·bias − 1 for all latents."""
    zeros = jax.tree.map(jnp.zeros_like, variables)
    bias = jnp.array([0.0, 0.5, 1.0])
    zeros["params"]["decoder"]["conv_out"]["bias"] = bias
    decode = jax.jit(functools.partial(small().apply, method="decode"))
    image = decode(zeros, jnp.ones((1, 2, 3, 4)))
    np.testing.assert_array_equal(image, jnp.broadcast_to(2 * bias - 1, (1, 4, 6, 3)))

    latents = jnp.sign(jax.random.normal(jax.random.key(1), (1, 2, 3, 4)))
    far, farther = decode(variables, 30 * latents), decode(variables, 1e4 * latents)
    np.testing.assert_allclose(far, farther, rtol=1e-5, atol=1e-5)
    assert np.abs(far - decode(variables, 3 * latents)).max() > 0.01


def test_bytes():
    """All 256 levels come back, and latents within the magnitude to half a step, 6/255.

    Latents beyond the magnitude are clipped.
    """
    network = small()
    stored = jnp.arange(256, dtype=jnp.uint8)
    latents = network.apply({}, stored, method="from_bytes")
    np.testing.assert_allclose(latents, np.linspace(-3, 3, 256), atol=1e-6)
    np.testing.assert_array_equal(network.apply({}, latents, method="to_bytes"), stored)
    latents = jnp.linspace(-4, 4, 1001)
    restored = network.apply({}, network.apply({}, latents, method="to_bytes"), method="from_bytes")
    assert np.abs(restored - np.clip(latents, -3, 3)).max() <= 3 / 255 + 1e-6


@pytest.mark.parametrize(
    ("network", "sides", "message"),
    [
        (small(), (4, 5), "images of 4×5 do not divide by 2"),
        (small(decoder_blocks=(1, 1, 1)), (4, 4), "as many resolutions; got 2 and 3"),
    ],
)
def test_faults(network, sides, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *sides, 3)))
