import functools

import jax
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_ltx_audio import AutoencoderLTXAudio
from genjax.nn.causal import apply_chunks

SMALL = AutoencoderLTXAudio(bins=8, latent_channels=2, width=4, blocks=1, multipliers=(1, 2, 2))


@pytest.fixture(scope="module")
def variables():
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), np.zeros((1, 1, 8, 2), np.float32))
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def test_parameter_counts():
    """The published counts, of FIELD's table."""
    sound = jax.ShapeDtypeStruct((1, 1, 64, 2), np.float32)
    params = jax.eval_shape(AutoencoderLTXAudio().init, jax.random.key(0), sound)["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (count(params["encoder"]), count(params["decoder"])) == (21_333_008, 31_915_138)
    assert count(params) == 53_248_146


def test_a_latent_frame_is_for_the_first_frame_and_for_each_four_after_it(variables):
    encode, decode = (functools.partial(SMALL.apply, method=name) for name in ("encode", "decode"))
    for frames, latent_frames in ((1, 1), (4, 1), (5, 2), (9, 3)):
        sound = jax.ShapeDtypeStruct((1, frames, 8, 2), np.float32)
        mean, log_variance = jax.eval_shape(encode, variables, sound)
        assert mean.shape == log_variance.shape == (1, latent_frames, 2, 2)
        assert jax.eval_shape(decode, variables, mean).shape == (1, 4 * latent_frames - 3, 8, 2)


@pytest.mark.parametrize(("method", "first", "size"), [("encode", 1, 8), ("decode", 1, 2)])
def test_chunks_give_the_whole(method, first, size, variables):
    places = dict(encode=(17, 8), decode=(5, 2))[method]
    x = np.random.default_rng(0).standard_normal((2, *places, 2), np.float32)
    whole = jax.jit(functools.partial(SMALL.apply, method=method))(variables, x)
    chunked = functools.partial(apply_chunks, SMALL, method=method, first=first, size=size)
    jax.tree.map(
        # float32 sums in another order.
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        jax.jit(chunked)(variables, x),
        whole,
    )


def test_no_frame_sees_a_later_one(variables):
    x = np.random.default_rng(0).standard_normal((1, 9, 8, 2), np.float32)
    later = x.copy()
    later[:, 5:] += 1
    encode = jax.jit(functools.partial(SMALL.apply, method="encode"))
    difference = np.abs(encode(variables, later)[0] - encode(variables, x)[0]).max((0, 2, 3))
    np.testing.assert_array_equal(difference > 0, [False, False, True])


def test_another_number_of_bins_is_an_error(variables):
    with pytest.raises(ValueError, match="has 8 bins of 2 channels; got 12 of 2"):
        SMALL.apply(variables, jax.numpy.zeros((1, 1, 12, 2)), method="encode")
    with pytest.raises(ValueError, match="bins=6 is no multiple of 4"):
        SMALL.clone(bins=6).init(jax.random.key(0), jax.numpy.zeros((1, 1, 6, 2)))
