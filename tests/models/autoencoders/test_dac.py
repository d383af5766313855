import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.dac import DAC, DAC_44KHZ
from genjax.nn.quantizers import FactorizedResidualQuantizer
from genjax.nn.windows import apply_windows

KEY = jax.random.key(0)
SMALL = DAC(FactorizedResidualQuantizer(3, 8, 6, 2), 4, 8, (2, 4), sample_rate=8000)


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@functools.cache
def small_variables():
    draw = lambda a: jnp.asarray(np.random.default_rng(a.size).normal(0, 0.3, a.shape), a.dtype)
    shapes = jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 16, 1)))
    return jax.tree.map(draw, shapes)


def test_the_published_codec_has_its_published_size_and_bitrate():
    """Published networks have weight norm multiplied out, so the gains are left out."""
    codec = DAC_44KHZ()
    variables = jax.eval_shape(codec.init, KEY, jnp.zeros((1, 1024, 1)))
    leaves, _ = jax.tree.flatten_with_path(variables)
    gains = sum(leaf.size for path, leaf in leaves if path[-1].key == "gain")
    assert size(variables) - gains == 76_620_777
    assert codec.factor == 512 and codec.latent_channels == 1024
    assert codec.frame_rate == pytest.approx(86.1328, abs=1e-4)
    assert codec.bitrate == pytest.approx(7751.953, abs=1e-3)
    assert round(8 * codec.bitrate / 9, 3) == 6890.625  # bits per second of 8 levels


def test_a_sound_is_decoded_from_its_codes():
    sound = jax.random.uniform(KEY, (2, 64, 1), minval=-1)
    variables = small_variables()

    @jax.jit
    def apply(sound):
        latents = SMALL.apply(variables, sound, method="encode")
        indices = SMALL.apply(variables, latents, method="quantize").indices
        return (
            indices,
            SMALL.apply(variables, indices, method="decode_indices"),
            SMALL.apply(variables, sound),
        )

    indices, decoded, reconstruction = apply(sound)
    assert indices.shape == (2, 8, 3) and len(np.unique(indices)) > 3
    assert decoded.shape == sound.shape and np.std(decoded) > 0.05
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-5)  # float32


def test_windows_of_time_give_the_whole():
    variables, factor, frames = small_variables(), SMALL.factor, 120
    sound = jax.random.uniform(KEY, (1, frames * factor, 1), minval=-1)
    encode, decode = (
        functools.partial(SMALL.apply, variables, method=name) for name in ("encode", "decode")
    )
    in_windows = functools.partial(apply_windows, size=25)

    @jax.jit
    def encoded(x):
        margin = SMALL.encoder_margin
        return encode(x), in_windows(encode, x, margin=margin, stride=factor)

    @jax.jit
    def decoded(z):
        margin = SMALL.decoder_margin
        return decode(z), in_windows(decode, z, margin=margin, scale=factor)

    latents, by_windows = encoded(sound)
    np.testing.assert_allclose(by_windows, latents, rtol=0, atol=1e-5 * np.abs(latents).max())
    whole, by_windows = decoded(latents)
    assert np.std(whole) > 0.02
    np.testing.assert_allclose(by_windows, whole, rtol=0, atol=1e-5)


def test_margins_are_where_the_reach_ends():
    """A frame moves no samples beyond the margin, and moves some at most three frames nearer."""
    variables, margin = small_variables(), SMALL.decoder_margin
    at, latents = 2 * margin, jnp.zeros((1, 4 * margin, 6))
    decode = jax.jit(lambda z: SMALL.apply(variables, z, method="decode"))
    moved = decode(latents.at[0, at].set(1.0)) != decode(latents)
    (reached,) = np.nonzero(np.asarray(moved[0, :, 0]))
    nearest, farthest = reached.min() // SMALL.factor, reached.max() // SMALL.factor
    assert margin - 3 <= at - nearest <= margin and margin - 3 <= farthest - at <= margin


def test_a_sound_of_another_length_is_refused():
    with pytest.raises(ValueError, match="60 samples; pad it to a multiple of 8"):
        SMALL.init(KEY, jnp.zeros((1, 60, 1)))


def test_other_channels_and_integers_are_refused(unchecked_annotations):
    """Flax would make a network of 2 channels, whose output has 1."""
    with pytest.raises(ValueError, match="have 2 channels; this network takes 1"):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 16, 2)))
    with pytest.raises(ValueError, match="waveforms are floats .*; got int16"):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 16, 1), jnp.int16))
