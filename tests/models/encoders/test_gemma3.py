import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.gemma3 import Gemma3_1B, Gemma3_4B, Gemma3_12B, Gemma3Text

VOCABULARY, LENGTH, WINDOW = 12, 9, 3
SIZES = dict(width=16, num_heads=4, num_kv_heads=2, head_features=4, mlp_features=20)
encoder = functools.partial(Gemma3Text, VOCABULARY, window=WINDOW, **SIZES)
MIXED = dict(depth=3, global_layers=(1,))


def perturbed(module):
    """Make parameters in which every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), int))
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def mixed():
    """Return a network with layers of both kinds, and its variables."""
    return jax.jit(encoder(**MIXED).apply), perturbed(encoder(**MIXED))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), np.int32)


# The published totals without SigLIP (416,866,032) and the projection, norm included, of its 1152
# features: 999,885,952; 4,300,079,472; 12,187,325,040.
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Gemma3_1B, 999_885_952),
        (Gemma3_4B, 4_300_079_472 - 416_866_032 - 1152 * 2561),
        (Gemma3_12B, 12_187_325_040 - 416_866_032 - 1152 * 3841),
    ],
)
def test_parameter_counts(build, expected):
    shapes = jax.eval_shape(build().init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == expected


def test_a_text_after_padding_has_the_states_of_the_text_alone(mixed, tokens):
    apply, variables = mixed
    moved = np.concatenate([np.ones((2, 4), np.int32), tokens[:, :-4]], axis=1)
    mask = np.broadcast_to(np.arange(LENGTH) >= 4, moved.shape)
    after = apply(variables, moved, mask)
    assert after.shape == (4, 2, LENGTH, 16) and np.isfinite(after).all()
    alone = apply(variables, tokens, np.ones(mask.shape, bool))[:, :, :-4]
    # float32 sums in another order.
    np.testing.assert_allclose(after[:, :, 4:], alone, atol=1e-5 * np.abs(alone).max())


def test_no_token_sees_a_later_one(mixed, tokens):
    apply, variables = mixed
    changed = tokens.copy()
    changed[:, 5:] = (tokens[:, 5:] + 1) % VOCABULARY
    before, after = apply(variables, tokens), apply(variables, changed)
    np.testing.assert_array_equal(before[:, :, :5], after[:, :, :5])
    assert (np.abs(before - after)[:, :, 5:].max((0, 1, 3)) > 1e-3).all()


@pytest.mark.parametrize("global_layers", [(), (0,)])
def test_a_local_layer_sees_as_many_tokens_as_the_window(global_layers, tokens):
    module = encoder(depth=1, global_layers=global_layers)
    variables, apply = perturbed(module), jax.jit(module.apply)
    changed = tokens.copy()
    changed[:, 0] = (tokens[:, 0] + 1) % VOCABULARY
    difference = np.abs(apply(variables, tokens) - apply(variables, changed))[-1].max((0, 2))
    seen = difference > 0
    np.testing.assert_array_equal(seen[1:WINDOW], True)
    np.testing.assert_array_equal(seen[WINDOW:], bool(global_layers))


def test_bfloat16_computes_near_float32(mixed, tokens):
    apply, variables = mixed
    expected = apply(variables, tokens)
    output = jax.jit(encoder(**MIXED, dtype=jnp.bfloat16).apply)(variables, tokens)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; two dozen products sum to a few times that.
    assert 1e-4 < error < 0.02


def test_param_dtype_is_that_of_every_parameter(tokens):
    module = encoder(**MIXED, param_dtype=jnp.bfloat16)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
