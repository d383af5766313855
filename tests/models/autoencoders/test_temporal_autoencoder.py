"""Movie Gen's temporal autoencoder: its image autoencoder and its symmetries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.temporal_autoencoder import TemporalAutoencoder, inflate

SIZES = dict(latent_channels=2, widths=(4, 4, 8), blocks=1, groups=2)  # halves twice
HEIGHT, WIDTH = 4, 8


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def draw(module, example):
    """Make variables in which every part matters; temporal layers are not the identity either."""
    random = np.random.default_rng(0)

    def one(path, leaf):
        scale = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * random.standard_normal(leaf.shape, np.float32)

    expected = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct(example, jnp.float32)
    )
    return jax.tree.map_with_path(one, expected)


@pytest.fixture(scope="module")
def module():
    return TemporalAutoencoder(**SIZES)


@pytest.fixture(scope="module")
def variables(module):
    return draw(module, (1, 1, HEIGHT, WIDTH, 3))


def compiled(module):
    @jax.jit
    def apply(variables, video):
        mean, log_variance = module.apply(variables, video, method="encode")
        return mean, log_variance, module.apply(variables, mean, method="decode")

    return apply


@pytest.fixture(scope="module")
def apply(module):
    return compiled(module)


def assert_close(a, b):
    # float32 sums in another order, some twenty layers; the largest difference seen was 2e-6.
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_parameters():
    """Count the image autoencoder's parameters, 83,819,683, and those of the temporal layers.

    The image autoencoder is Stable Diffusion 3's. Each 3×3 convolution to c channels adds 3c² + c.
    Twice a group norm, 2c, and the products of temporal attention, 4c² + 4c, come on top.
    """
    module = TemporalAutoencoder()
    example = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    time = {True: 0, False: 0}
    for path, leaf in jax.tree.leaves_with_path(
        jax.eval_shape(module.init, jax.random.key(0), example)
    ):
        time["time" in jax.tree_util.keystr(path)] += leaf.size
    assert time[False] == 83_819_683
    convolutions = {  # channels: convolutions of the encoder + of the decoder
        128: (1 + 4 + 1) + 6,
        256: (4 + 1) + (6 + 1),
        512: (4 + 1 + 4 + 4) + (1 + 4 + 6 + 1 + 6 + 1),
        32: 1,
        3: 1,
    }
    expected = sum(count * (3 * c**2 + c) for c, count in convolutions.items())
    assert time[True] == expected + 2 * (2 * 512 + 4 * 512**2 + 4 * 512)
    assert (module.factor, module.temporal_factor, module.latent_channels) == (8, 8, 16)


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (4, 1), (5, 2), (256, 64)])
def test_shapes(module, variables, frames, latent_frames):
    """⌈T/4⌉ latent frames decode to the original number of frames."""
    video = jax.ShapeDtypeStruct((1, frames, HEIGHT, WIDTH, 3), jnp.float32)
    mean, log_variance = jax.eval_shape(
        functools.partial(module.apply, method="encode"), variables, video
    )
    assert mean.shape == log_variance.shape == (1, latent_frames, 1, 2, 2)
    assert jax.eval_shape(module.apply, variables, video).shape == video.shape


def test_inflated_is_the_image_autoencoder():
    """Initial temporal layers encode frames 0, 2 and 4, and decode each latent to two frames."""
    sizes = SIZES | dict(widths=(4, 8))
    module = TemporalAutoencoder(**sizes)
    image_module = AutoencoderKL(**sizes, use_quant_conv=False, use_post_quant_conv=False)
    image_variables = draw(image_module, (1, 4, 6, 3))
    # The rest keeps nothing, and compiling it would take as long as all other tests here.
    in_time = lambda flat: {path: leaf for path, leaf in flat.items() if "time" in "".join(path)}
    initial = flatten_dict(draw(module, (1, 1, 4, 6, 3)))
    initial |= jax.jit(
        lambda key: in_time(flatten_dict(module.init(key, jnp.zeros((1, 1, 4, 6, 3)))))
    )(jax.random.key(0))
    video = normal(0, 2, 5, 4, 6, 3)
    found = compiled(module)(inflate(unflatten_dict(initial), image_variables), video)
    frames = video[:, ::2].reshape(6, 4, 6, 3)
    mean, log_variance, decoded = compiled(image_module)(image_variables, frames)
    expected = [mean, log_variance, np.repeat(decoded, 2, axis=0)]
    for one, other in zip(found, expected, strict=True):
        assert np.std(other) > 0.1
        assert_close(one.reshape(other.shape), other)


def test_inflate_names_what_differs(variables):
    image = AutoencoderKL(**SIZES, use_post_quant_conv=False)
    with pytest.raises(
        ValueError, match=r"has \[\('params/quant_conv/bias', \(4,\)\), \('params/quant_conv/k"
    ):
        inflate(variables, draw(image, (1, HEIGHT, WIDTH, 3)))


def test_a_still_video_is_its_image(apply, variables):
    """Replicated frames lengthen a video of equal frames, so its latents are the image's."""
    still = normal(0, 1, 1, HEIGHT, WIDTH, 3)
    expected = apply(variables, still)
    for found, one in zip(apply(variables, jnp.repeat(still, 5, axis=1)), expected, strict=True):
        assert found.shape[1] == 2 * one.shape[1]
        assert np.std(one) > 0.05
        assert_close(found, jnp.repeat(one[:, :1], found.shape[1], axis=1))


def test_time_reversal(apply, variables):
    """With kernels symmetric in time, a reversed video of 1 + 4n frames has reversed latents.

    Then the strides hit the same frames from either end. Reversed latents give the reversed video.
    """

    def symmetric(path, leaf):
        is_kernel = "_time" in jax.tree_util.keystr(path) and leaf.ndim == 5
        return (leaf + leaf[::-1]) / 2 if is_kernel else leaf

    video = normal(0, 1, 17, HEIGHT, WIDTH, 3)
    for function, same in (
        (lambda a: jax.tree.map_with_path(symmetric, a), True),
        (lambda a: a, False),
    ):
        forward, backward = (
            apply(function(variables), video),
            apply(function(variables), video[:, ::-1]),
        )
        for one, other in zip(forward, backward, strict=True):
            error = np.abs(one - other[:, ::-1]).max() / np.abs(one).max()
            assert (error < 1e-5) if same else (error > 1e-2)


@pytest.mark.parametrize("mid_attention", [True, False])
def test_attention_in_time_looks_everywhere(mid_attention):
    """The last of 65 frames changes the first latent frame, although convolutions do not reach it.

    Halved twice, convolutions see 4 + 6 frames ahead before the middle, and 6 + 1 latent frames, 28
    frames, in the middle. So attention carries the change.
    """
    module = TemporalAutoencoder(**SIZES, mid_attention=mid_attention)
    encode = jax.jit(functools.partial(module.apply, method="encode"))
    variables = draw(module, (1, 1, 4, 4, 3))
    video = normal(0, 1, 65, 4, 4, 3)
    mean, changed = (encode(variables, video)[0] for video in (video, video.at[:, -1].multiply(-1)))
    difference = np.abs(changed - mean).max(axis=(0, 2, 3, 4))
    assert difference[-1] > 0.01
    assert (difference[0] > 1e-3) if mid_attention else (difference[0] == 0)


def test_errors(module, variables):
    with pytest.raises(ValueError, match="multiples of 4; got 4×6"):
        module.apply(variables, jnp.zeros((1, 1, 4, 6, 3)))
    with pytest.raises(ValueError, match="17 frames have 5 latent frames; got 2"):
        module.apply(variables, jnp.zeros((1, 2, 1, 2, 2)), 17, method="decode")
