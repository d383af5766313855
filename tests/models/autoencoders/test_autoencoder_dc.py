import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_dc import (
    AutoencoderDC,
    Downsample,
    Stage,
    Upsample,
    average_channels,
    channels_to_space,
    dc_ae_f32c32,
    dc_ae_f32c32_sana,
    dc_ae_f64c128,
    dc_ae_f128c512,
    duplicate_channels,
    linear_attention,
    space_to_channels,
)
from genjax.nn import attention

STAGES = (Stage(8, 0), Stage(8, 1, norm="batch"), Stage(16, 1, "efficient_vit", (3,)))
small = functools.partial(
    AutoencoderDC, latent_channels=4, encoder_stages=STAGES, decoder_stages=STAGES, head_features=4
)


@pytest.fixture(scope="module")
def variables():
    """Make variables without `init`, whose many small draws take long to compile."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def draw(path, a):
        if a.ndim > 1:
            return random.standard_normal(a.shape, np.float32) / np.sqrt(a.size / a.shape[-1])
        return np.full(a.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize(
    ("build", "encoder", "decoder"),
    [  # counts of diffusers' modules of the same configurations, see tests/parity
        (dc_ae_f32c32, 123_172_384, 200_184_076),
        (dc_ae_f64c128, 264_550_528, 412_345_612),
        (dc_ae_f128c512, 415_661_056, 705_021_196),
        (dc_ae_f32c32_sana, 153_027_104, 159_223_171),
    ],
)
def test_parameter_counts(build, encoder, decoder):
    module = build()
    images = jax.ShapeDtypeStruct((1, 2 * module.factor, module.factor, 3), jnp.float32)
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    assert {side: count(tree) for side, tree in variables["params"].items()} == dict(
        encoder=encoder, decoder=decoder
    )
    assert output.shape == images.shape
    latents = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, images)
    assert latents.shape == (1, 2, 1, module.latent_channels)


def test_space_and_channels():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    y = space_to_channels(x)
    assert y.shape == (2, 2, 3, 12)
    for channel, row, column in ((0, 0, 0), (1, 0, 1), (2, 1, 0), (2, 1, 1)):
        np.testing.assert_array_equal(
            y[..., 4 * channel + 2 * row + column], x[:, row::2, column::2, channel]
        )
    np.testing.assert_array_equal(channels_to_space(y), x)


def test_shortcuts_undo_each_other():
    """The mean of copies is the original, so the shortcut up and then down is the identity."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 5, 8), np.float32))
    up = channels_to_space(duplicate_channels(x, 4 * 4))
    assert up.shape == (1, 6, 10, 4)
    np.testing.assert_allclose(average_channels(space_to_channels(up), 8), x, rtol=1e-6)


@pytest.mark.parametrize("rearranging", [True, False])
def test_resolutions_learn_residuals(rearranging):
    """With zero kernels a change of resolution is its shortcut, which keeps a constant image."""
    options = dict(
        rearranging=rearranging, shortcut=True, dtype=jnp.float32, param_dtype=jnp.float32
    )
    down, up = Downsample(8, **options), Upsample(4, **options)

    @jax.jit
    def both(x):
        zeros = lambda module, x: jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), x))
        halved = down.apply(zeros(down, x), x)
        return halved, up.apply(zeros(up, halved), halved)

    halved, doubled = both(jnp.full((1, 4, 6, 4), 0.7))
    assert halved.shape == (1, 2, 3, 8) and doubled.shape == (1, 4, 6, 4)
    for output in (halved, doubled):
        np.testing.assert_allclose(output, 0.7, rtol=1e-6)


def test_linear_attention_is_quadratic_attention():
    """Attention has weights relu(q)·relu(k), and averages for equal queries and keys."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 20, 3, 4), np.float32)
    weights = np.einsum("bqhf,bkhf->bhqk", np.maximum(query, 0), np.maximum(key, 0))
    weights /= weights.sum(axis=-1, keepdims=True) + 1e-15
    found = linear_attention(*map(jnp.asarray, (query, key, value)))
    np.testing.assert_allclose(
        found, np.einsum("bhqk,bkhf->bqhf", weights, value), rtol=1e-4, atol=1e-5
    )
    same = jnp.ones((2, 20, 3, 4))
    np.testing.assert_allclose(
        linear_attention(same, same, jnp.asarray(value)),
        attention(same, same, jnp.asarray(value)),
        atol=1e-6,
    )
    np.testing.assert_array_equal(linear_attention(-same, same, same), 0)


def test_batch_statistics(variables):
    """Calls with `train` use the batch's statistics and move the running ones by a tenth.

    Calls without `train` do neither.
    """
    images = jax.random.normal(jax.random.key(1), (4, 8, 12, 3))

    @jax.jit
    def outputs(variables, images):
        apply = functools.partial(small().apply, mutable=["batch_stats"])
        return apply(variables, images), apply(variables, images, train=True)

    (plain, same), (trained, moved) = outputs(variables, images)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])
    assert np.abs(plain - trained).max() > 1e-3
    means = jax.tree.leaves(moved["batch_stats"])
    assert all(
        np.any(a != b)
        for a, b in zip(means, jax.tree.leaves(variables["batch_stats"]), strict=True)
    )


def test_half_precision_is_near(variables):
    """bfloat16 has 8 bits: some fifteen layers give a few per cent; outputs stay float32."""
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1)
    full, half = (
        jax.jit(small(dtype=dtype).apply)(variables, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    error = np.abs(half - full).max() / np.abs(full).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("network", "sides", "message"),
    [
        (small(), (8, 6), "images of 8×6 do not divide by 4"),
        (small(decoder_stages=STAGES[:2]), (8, 8), "same number of stages.* got 3 and 2"),
        (
            small(encoder_stages=(*STAGES[:2], Stage(16, 1, "conv"))),
            (8, 8),
            "stage 2 takes one of residual.* 'conv'",
        ),
        (small(decoder_stages=(*STAGES[:2], Stage(16, 0))), (8, 8), "decoder stage 2 has none"),
        (small(decoder_stages=(*STAGES[:2], Stage(12, 1))), (8, 8), "the decoder has 8 and 12"),
        (
            small(latent_channels=3),
            (8, 8),
            "divide by those of the latents, 3, .* the encoder has 16",
        ),
        (small(out_activation="tanh"), (8, 8), "out_activation is one of silu, relu; got 'tanh'"),
    ],
)
def test_faults(network, sides, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *sides, 3)))
