"""EnCodec's size, and what a causal codec keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.encodec import ENCODEC_24KHZ, LSTM, EnCodec
from genjax.nn.quantizers import ResidualVectorQuantizer

KEY = jax.random.key(0)
SMALL = EnCodec(ResidualVectorQuantizer(3, 8, 6), 4, (2, 4), sample_rate=800)


@functools.cache
def small_variables():
    draw = lambda a: jnp.asarray(np.random.default_rng(a.size).normal(0, 0.3, a.shape), a.dtype)
    shapes = jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 56, 1)))
    return jax.tree.map(draw, shapes)


def test_the_published_codec_has_its_size_and_bitrate():
    """14,851,810 parameters of transformers' EncodecModel, and 32 codebooks of 1,024·128."""
    codec = ENCODEC_24KHZ()
    variables = jax.eval_shape(codec.init, KEY, jnp.zeros((1, 2240, 1)))
    assert sum(a.size for a in jax.tree.leaves(variables)) == 14_851_810 + 32 * 1024 * 128
    assert codec.factor == 320 and codec.frame_rate == 75 and codec.bitrate == 24_000


def test_no_frame_depends_on_later_samples_and_no_sample_on_later_frames():
    variables, frames, at = small_variables(), 20, 12
    sound = jax.random.uniform(KEY, (1, frames * SMALL.factor, 1), minval=-1)
    encode, decode = (
        jax.jit(functools.partial(SMALL.apply, variables, method=name))
        for name in ("encode", "decode")
    )
    latents = encode(sound)
    later = encode(sound.at[:, at * SMALL.factor :].add(0.5))
    np.testing.assert_array_equal(later[:, :at], latents[:, :at])
    assert np.all(np.any(later[:, at:] != latents[:, at:], axis=-1))
    whole, later = decode(latents), decode(latents.at[:, at:].add(0.5))
    first = at * SMALL.factor
    np.testing.assert_array_equal(later[:, :first], whole[:, :first])
    assert np.any(later[:, first:] != whole[:, first:])


def test_a_sound_is_decoded_from_its_codes():
    sound, variables = jax.random.uniform(KEY, (2, 64, 1), minval=-1), small_variables()

    @jax.jit
    def apply(sound):
        latents = SMALL.apply(variables, sound, method="encode")
        indices = SMALL.apply(variables, latents, method="quantize").indices
        decoded = SMALL.apply(variables, indices, method="decode_indices")
        return indices, decoded, SMALL.apply(variables, sound)

    indices, decoded, reconstruction = apply(sound)
    assert indices.shape == (2, 8, 3) and decoded.shape == sound.shape
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-5)


def test_a_cell_that_forgets_nothing_adds_up_its_inputs():
    """Gates of ±100 are open or closed: the cell is Σ tanh(x), and the state its tanh."""
    width = 2
    kernel = np.zeros((width, 4 * width), np.float32)
    kernel[:, 2 * width : 3 * width] = np.eye(width)  # of the cell's input
    gates = 100 * np.repeat(np.array([1, 1, 0, 1], np.float32), width)
    params = dict(input_kernel=kernel, hidden_kernel=np.zeros_like(kernel))
    params |= dict(input_bias=gates, hidden_bias=np.zeros_like(gates))
    variables = {"params": {f"layer_0_{name}": value for name, value in params.items()}}
    x = np.random.default_rng(0).normal(size=(1, 5, width)).astype(np.float32)
    expected = x + np.tanh(np.cumsum(np.tanh(x), axis=1))
    found = LSTM(1).apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("samples", [60, 48])
def test_a_sound_of_another_length_is_refused(samples):
    with pytest.raises(ValueError, match=f"{samples} samples; pad it to a multiple of 8, at least"):
        SMALL.init(KEY, jnp.zeros((1, samples, 1)))


def test_other_channels_and_integers_are_refused(unchecked_annotations):
    """Flax would make a network of 2 channels, whose output has 1."""
    with pytest.raises(ValueError, match="have 2 channels; this network takes 1"):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 56, 2)))
    with pytest.raises(ValueError, match="waveforms are floats .*; got int16"):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 56, 1), jnp.int16))
