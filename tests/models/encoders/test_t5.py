import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.t5 import T5_XXL, UMT5_XXL, Block, T5Encoder, relative_buckets
from tests.models.block_options import check_block_options

VOCABULARY, LENGTH, DEPTH, WIDTH, HEAD = 12, 9, 2, 16, 4
encoder = functools.partial(
    T5Encoder, VOCABULARY, WIDTH, DEPTH, 3, HEAD, 20, num_buckets=8, max_distance=16
)
KINDS = {"T5": dict(gate=None), "T5 version 1.1": {}, "UMT5": dict(bias_per_block=True)}


def perturbed(**options):
    """Make parameters in which every part of the network matters, including biases."""
    random = np.random.default_rng(0)
    initial = jax.eval_shape(encoder(**options).init, jax.random.key(0), jnp.zeros((1, 1), int))
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), initial)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """Return a network's output and its variables."""
    options = KINDS[request.param]
    return jax.jit(encoder(**options).apply), perturbed(**options)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), np.int32)


# UMT5 has 256,384 tokens instead of 32,128, and 23 more tables of 32·64 biases.
@pytest.mark.parametrize("build, expected", [(T5_XXL, 4_762_310_656), (UMT5_XXL, 5_680_910_336)])
def test_parameter_counts(build, expected):
    variables = jax.eval_shape(
        build().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 512), jnp.int32)
    )
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 16)])
def test_buckets_in_whole_numbers(num_buckets, max_distance):
    """Distance d is in bucket e + k if (d/e)ⁿ ≥ (max/e)ᵏ, for e exact and n logarithmic buckets.

    This form needs integers only.
    """
    buckets = relative_buckets(300, num_buckets, max_distance)
    exact = steps = num_buckets // 4
    for distance in range(300):
        expected = distance
        if distance >= exact:
            passed = [
                distance**steps * exact**k >= max_distance**k * exact**steps
                for k in range(1, steps)
            ]
            expected = exact + sum(passed)
        assert buckets[distance, 0] == expected
        assert distance == 0 or buckets[0, distance] == expected + num_buckets // 2


def test_only_relative_positions_matter(kind, tokens):
    """A text before masked padding has the same states as alone."""
    apply, variables = kind
    moved = np.concatenate([np.ones((2, 3), np.int32), tokens[:, :-3]], axis=1)
    mask = np.ones(tokens.shape, bool)
    mask[:, :3] = False
    after = apply(variables, moved, mask)[:, 3:]
    alone = apply(variables, tokens, mask[:, ::-1])[:, :-3]
    # float32 sums in another order.
    np.testing.assert_allclose(after, alone, atol=1e-5 * np.abs(alone).max())


def test_positions_matter(kind, tokens):
    apply, variables = kind
    flipped = apply(variables, tokens[:, ::-1])[:, ::-1]
    assert np.abs(flipped - apply(variables, tokens)).max() > 0.1


def test_padding_matters_without_a_mask_alone(kind, tokens):
    apply, variables = kind
    mask = np.arange(LENGTH) < np.array([[4], [7]])
    padded = np.where(mask, tokens, (tokens + 1) % VOCABULARY)
    before, after = apply(variables, tokens, mask), apply(variables, padded, mask)
    np.testing.assert_array_equal(before[mask], after[mask])
    assert np.abs(apply(variables, tokens) - apply(variables, padded))[mask].max() > 0.1


def test_options_reach_the_blocks(tokens):
    check_block_options(encoder(), perturbed(), tokens, products=8)


def test_bfloat16_computes_near_float32_also_of_long_texts():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, 256), np.int32)
    variables = perturbed()
    expected = jax.jit(encoder().apply)(variables, tokens)
    output = jax.jit(encoder(dtype=jnp.bfloat16).apply)(variables, tokens)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; a dozen products sum to a few times that.
    assert 1e-4 < error < 0.02


def test_large_states_keep_what_is_added_to_them():
    """Published networks' states reach tens of thousands, with bfloat16 steps of 128 and more."""
    block = lambda dtype: Block(2, 4, 8, "gelu", 8, 16, 1e-6, dtype, jnp.float32)
    x = jnp.asarray(30_000 * np.random.default_rng(0).standard_normal((1, 3, 8)), jnp.float32)
    variables = jax.jit(block(jnp.float32).init)(jax.random.key(0), x, None, None)
    added, expected = (
        jax.jit(block(dtype).apply)(variables, x, None, None)[0] - x
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert 0.1 < np.abs(expected).max() < 10
    # A few roundings of .002 of numbers of about one; float32 at 60,000 has steps of .004.
    np.testing.assert_allclose(added, expected, atol=0.05)


def test_initial_queries_have_the_scale_that_attention_lacks(tokens):
    variables = jax.jit(T5Encoder(8, 64, 2, 4, 16, 8).init)(jax.random.key(0), tokens % 8)
    blocks = variables["params"]["blocks"]
    for name, expected in (("query", (64 * 16) ** -0.5), ("key", 64**-0.5), ("mlp_out", 8**-0.5)):
        # A layer has 4,096 or 512 numbers, so the deviation is known to a few percent.
        np.testing.assert_allclose(np.std(blocks[name]["kernel"], axis=(1, 2)), expected, rtol=0.12)


def test_param_dtype_is_that_of_every_parameter(tokens):
    for options in KINDS.values():
        module = encoder(param_dtype=jnp.bfloat16, **options)
        variables = jax.eval_shape(module.init, jax.random.key(0), tokens)
        assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
