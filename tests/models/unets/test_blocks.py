import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.devices.cost import multiply_adds
from genjax.models.unets.blocks import (
    Levels,
    ResidualBlock,
    SelfAttention,
    decode,
    encode,
    group_norm,
    rematerialized,
)

# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
key = jax.random.key(0)
normal = nn.initializers.normal(0.3)
images = jax.random.normal(jax.random.key(1), (2, 4, 6, 8))
conditioning = jax.random.normal(jax.random.key(2), (2, 5))
types = dict(dtype=jnp.float32, param_dtype=jnp.float32)


FIELDS = dict(
    features=8,
    resample=None,
    num_heads=0,
    scale_shift=True,
    skip_scale=1.0,
    project_resampled=False,
    epsilon=1e-6,
    dropout_rate=0.0,
    kernel_init=normal,
    attention_init=normal,
    last_init=normal,
    **types,
)


def residual_block(**options):
    return ResidualBlock(**FIELDS | options)


def normalized(x, groups):
    """Return `x` with each group of features normalized, in float64."""
    grouped = np.asarray(x, np.float64).reshape(*x.shape[:3], groups, -1)
    mean, deviation = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.std))
    return ((grouped - mean) / deviation).reshape(x.shape)


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(("features", "groups"), [(4, 1), (8, 2), (128, 32), (144, 24), (384, 32)])
def test_groups_have_four_features_at_least_and_are_32_at_most(features, groups):
    """Computed by hand: 144 = 24·6, and no number from 25 to 32 divides 144."""
    x = jax.random.normal(key, (2, 3, 5, features))

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return group_norm(x, 1e-6, jnp.float32, "norm")

    output, _ = Norm().init_with_output(key, x)
    # float32 statistics of 60 numbers or more.
    np.testing.assert_allclose(output, normalized(x, groups), atol=1e-5)


def test_attention_sees_no_order_of_positions():
    module = SelfAttention(2, normal, normal, 1e-6, **types)
    order = np.random.default_rng(0).permutation(24)
    permute = lambda x: x.reshape(2, 24, 8)[:, order].reshape(x.shape)
    variables = module.init(key, images)
    apply = quick_jit(module.apply)
    output = apply(variables, images)
    assert np.std(output) > 0.1
    np.testing.assert_allclose(apply(variables, permute(images)), permute(output), atol=1e-5)


def test_attention_without_queries_is_the_mean_of_the_values():
    module = SelfAttention(2, normal, normal, 1e-6, **types)
    params = module.init(key, images)["params"]
    joined = params["query_key_value"]
    kernel = joined["kernel"].reshape(8, 2, 3, 4).at[:, :, 0].set(0)
    params = params | {"query_key_value": joined | {"kernel": kernel.reshape(8, 24)}}
    values = np.einsum("bhwi,inf->bhwnf", normalized(images, 2), kernel[:, :, 2])
    expected = values.mean((1, 2)).reshape(2, 8) @ params["projection"]["kernel"]
    output = quick_jit(module.apply)({"params": params}, images)
    expected = np.broadcast_to(expected[:, None, None], output.shape)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def mean_over_squares(x):
    return x.reshape(2, 2, 2, 3, 2, 8).mean((2, 4))


@pytest.mark.parametrize("resample", [None, mean_over_squares])
def test_a_block_whose_last_layers_are_zero_is_its_shortcut(resample):
    """The output is (x + 0)·s, and the same once more after attention."""
    options = dict(num_heads=2, skip_scale=0.75, last_init=nn.initializers.zeros)
    block = residual_block(resample=resample, **options)
    output, _ = block.init_with_output(key, images, conditioning)
    expected = images if resample is None else resample(images)
    np.testing.assert_allclose(output, 0.75**2 * expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "projected"),
    [
        (dict(), False),
        (dict(features=12), True),
        (dict(resample=mean_over_squares), False),
        (dict(resample=mean_over_squares, features=12), True),
        (dict(resample=mean_over_squares, project_resampled=True), True),
        (dict(project_resampled=True), False),
    ],
)
def test_inputs_of_other_channels_are_projected(options, projected):
    params = jax.eval_shape(residual_block(**options).init, key, images, conditioning)["params"]
    assert ("shortcut" in params) == projected
    if projected:
        assert params["shortcut"]["kernel"].shape == (8, options.get("features", 8))


def branch(block, params):
    """Return what the block adds to its input."""
    return quick_jit(block.apply)({"params": params}, images, conditioning) - images


def with_modulation(params, bias):
    kernel = jnp.zeros_like(params["modulation"]["kernel"])
    return params | {"modulation": {"kernel": kernel, "bias": jnp.asarray(bias)}}


def with_centre_alone(params, name):
    """Return the kernel of a convolution that is the identity."""
    kernel = jnp.zeros((3, 3, 8, 8)).at[1, 1].set(jnp.eye(8))
    return params | {name: params[name] | {"kernel": kernel}}


def test_conditioning_scales_then_shifts_the_normalized_features():
    block = residual_block()
    params = block.init(key, images, conditioning)["params"]
    scale, shift = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    params = with_centre_alone(with_centre_alone(params, "conv_in"), "conv_out")
    output = branch(block, with_modulation(params, np.concatenate([scale, shift])))
    inner = normalized(silu(normalized(images, 2)), 2)
    np.testing.assert_allclose(output, silu(inner * (1 + scale) + shift), atol=2e-5)


def test_added_conditioning_comes_before_the_norm():
    """The norm removes what all features of a group share, and normalizes the rest."""
    block = residual_block(scale_shift=False)
    params = block.init(key, images, conditioning)["params"]
    params = with_centre_alone(with_centre_alone(params, "conv_in"), "conv_out")
    none, same = (branch(block, with_modulation(params, np.full(8, value))) for value in (0.0, 3.0))
    np.testing.assert_allclose(same, none, atol=2e-5)
    shift = np.arange(8.0)
    output = branch(block, with_modulation(params, shift))
    inner = normalized(silu(normalized(images, 2)) + shift, 2)
    np.testing.assert_allclose(output, silu(inner), atol=2e-5)


def test_dropout_needs_a_key_and_keeps_the_mean():
    block = residual_block(dropout_rate=0.25)
    variables = block.init(key, images, conditioning)
    plain = quick_jit(block.apply)(variables, images, conditioning)
    undropped = quick_jit(residual_block().apply)(variables, images, conditioning)
    np.testing.assert_array_equal(plain, undropped)
    dropped = quick_jit(
        jax.vmap(lambda key: block.apply(variables, images, conditioning, rngs={"dropout": key}))
    )(jax.random.split(key, 1000))
    deviation = dropped.std(0)
    assert np.all(deviation > 0.01)
    # The last convolution is linear in the dropped features, so the mean is off by its standard
    # error only. Allow five times that.
    np.testing.assert_array_less(np.abs(dropped.mean(0) - plain), 5 * deviation / np.sqrt(1000))


def plan(num_blocks, attention_levels, every_block):
    """List the blocks of a U-Net of three levels: name, input and output shape, attention."""
    calls = []

    def block(x, features, name, resample=None, attend=False):
        y = x if resample is None else resample(x)
        calls.append((name, x.shape[1:], (*y.shape[1:3], features), attend))
        return jnp.zeros((*y.shape[:3], features))

    levels = Levels((4, 8, 12), num_blocks, attention_levels, every_block)
    outputs = encode(jnp.zeros((1, 8, 12, 3)), lambda x: jnp.zeros((1, 8, 12, 5)), block, levels)
    assert decode(outputs, block, levels).shape == (1, 8, 12, 4)
    return calls


def test_the_u_by_hand():
    """Decoder blocks read the last block's output and the encoder's outputs, latest first."""
    expected = [
        ("encoder_0_0", (8, 12, 5), (8, 12, 4), False),
        ("down_1", (8, 12, 4), (4, 6, 4), False),
        ("encoder_1_0", (4, 6, 4), (4, 6, 8), True),
        ("down_2", (4, 6, 8), (2, 3, 8), False),
        ("encoder_2_0", (2, 3, 8), (2, 3, 12), False),
        ("middle_0", (2, 3, 12), (2, 3, 12), True),
        ("middle_1", (2, 3, 12), (2, 3, 12), False),
        ("decoder_2_0", (2, 3, 12 + 12), (2, 3, 12), False),
        ("decoder_2_1", (2, 3, 12 + 8), (2, 3, 12), False),
        ("up_1", (2, 3, 12), (4, 6, 12), False),
        ("decoder_1_0", (4, 6, 12 + 8), (4, 6, 8), False),
        ("decoder_1_1", (4, 6, 8 + 4), (4, 6, 8), True),
        ("up_0", (4, 6, 8), (8, 12, 8), False),
        ("decoder_0_0", (8, 12, 8 + 4), (8, 12, 4), False),
        ("decoder_0_1", (8, 12, 4 + 5), (8, 12, 4), False),
    ]
    assert plan(1, (1,), every_block=False) == expected


def test_attention_of_every_block():
    calls = plan(2, (0, 2), every_block=True)
    attending = {name for name, *_, attend in calls if attend}
    levels = [f"{part}_{level}" for part in ("encoder", "decoder") for level in (0, 2)]
    last = {"encoder": 1, "decoder": 2}
    assert attending == {"middle_0"} | {
        f"{level}_{i}" for level in levels for i in range(last[level.split("_")[0]] + 1)
    }


def test_what_was_added_at_a_level_is_the_image_of_the_next():
    image = jax.random.normal(key, (1, 8, 4, 3))
    halve = lambda x: x.reshape(1, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))
    block = lambda x, *_, resample=lambda x: x, attend=False: 0 * resample(x)
    add_image = lambda x, image, level: x + halve(image) + level
    outputs = encode(image, lambda x: x, block, Levels((3, 3, 3), 1, (), False), add_image)
    expected = [image, 0, halve(image) + 1, 0, halve(halve(image) + 1) + 2, 0]
    for output, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, np.broadcast_to(value, output.shape), rtol=1e-6)


def test_rematerialized_blocks_compute_the_same_twice():
    """Gradients are equal float32 sums; the cost contains a second forward pass."""

    def gradient(policy, variables):
        block = rematerialized(policy)
        loss = lambda variables: jnp.sum(fields(block).apply(variables, images, conditioning) ** 2)
        return jax.grad(loss)(variables)

    fields = lambda block: block(**FIELDS | dict(num_heads=2))
    variables = fields(ResidualBlock).init(key, images, conditioning)
    policies = (None, "nothing_saveable")
    programs = [functools.partial(gradient, policy) for policy in policies]
    expected, found = (quick_jit(program)(variables) for program in programs)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    jax.tree.map(close, found, expected)
    cost, larger = (multiply_adds(program, variables) for program in programs)
    assert larger > 1.25 * cost
