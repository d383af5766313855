import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import attention

BATCH, QUERIES, KEYS, HEADS, FEATURES = 2, 5, 7, 3, 8


def reference(query, key, value, mask=None, bias=0.0, scale=FEATURES**-0.5):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    output = np.empty(query.shape)
    for b, q, h in np.ndindex(query.shape[:3]):
        logits = scale * key[b, :, h] @ query[b, q, h]
        logits = logits + np.broadcast_to(bias, (BATCH, HEADS, QUERIES, KEYS))[b, h, q]
        weights = np.exp(logits - logits.max())
        if mask is not None:
            weights = weights * np.broadcast_to(mask, (BATCH, HEADS, QUERIES, KEYS))[b, h, q]
        output[b, q, h] = weights / weights.sum() @ value[b, :, h]
    return output


@pytest.fixture(params=[jnp.float32, jnp.bfloat16])
def inputs(request):
    random = np.random.default_rng(0)
    shapes = [(BATCH, length, HEADS, FEATURES) for length in (QUERIES, KEYS, KEYS)]
    return [jnp.asarray(2 * random.standard_normal(shape), request.param) for shape in shapes]


def check(output, inputs, mask=None, **options):
    assert output.dtype == inputs[0].dtype
    # float32 rounds by 6e-8 and bfloat16 by .002 relative, here amplified by logits of about ten.
    tolerance = 5e-6 if output.dtype == jnp.float32 else 0.03
    expected = reference(*inputs, mask, **options)
    assert np.abs(np.asarray(output, np.float64) - expected).max() < tolerance * np.abs(expected).max()


def test_against_float64(inputs):
    check(attention(*inputs), inputs)


@pytest.mark.parametrize("shape", [(1, 1, QUERIES, KEYS), (BATCH, 1, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)])
def test_masks_broadcast(inputs, shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 2] = True  # every query may look somewhere
    check(attention(*inputs, jnp.asarray(mask)), inputs, mask)


@pytest.mark.parametrize("shape", [(1, HEADS, QUERIES, KEYS), (BATCH, 1, 1, KEYS)])
def test_biases_broadcast_and_the_scale_can_be_given(inputs, shape):
    bias = 3 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    mask = np.arange(KEYS) < KEYS - 2
    mask = mask[None, None, None]
    output = attention(*inputs, jnp.asarray(mask), jnp.asarray(bias), scale=0.5)
    check(output, inputs, mask, bias=bias, scale=0.5)


def test_causal_mask_cuts_gradients_of_later_keys():
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(a, jnp.float32) for a in random.standard_normal((3, 1, 4, 1, FEATURES)))
    mask = jnp.tril(jnp.ones((4, 4), bool))[None, None]
    gradient = jax.grad(lambda value: attention(query, key, value, mask)[0, 1].sum())(value)
    assert np.all(gradient[0, :2] != 0) and np.all(gradient[0, 2:] == 0)


def test_large_logits_do_not_overflow():
    query, key = jnp.full((1, 1, 1, FEATURES), 100.0), jnp.full((1, 2, 1, FEATURES), 100.0).at[0, 1].set(101)
    value = jnp.array([0.0, 1.0])[None, :, None, None].repeat(FEATURES, -1)
    output = attention(query, key, value)  # logits of 28,284 and 28,567: their exponentials are infinite
    np.testing.assert_array_equal(output, np.ones((1, 1, 1, FEATURES)))


def test_a_query_that_may_look_nowhere_stays_finite():
    inputs = (jnp.ones((1, 1, 1, FEATURES)),) * 3
    loss = lambda *inputs: attention(*inputs, jnp.zeros((1, 1, 1, 1), bool)).sum()
    for a in jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)):
        assert np.all(np.isfinite(a))


def test_logits_keep_float32_precision_in_bfloat16():
    """Two keys whose logits lie a quarter of a bfloat16 step apart: equal weights if logits were rounded."""
    query = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
    key = jnp.full((1, 2, 1, 64), 16, jnp.bfloat16).at[0, 1, 0, 0].set(18)  # logits 128 and 128.25
    value = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None].repeat(64, -1)
    output = np.asarray(attention(query, key, value), np.float64)
    np.testing.assert_allclose(output, 1 / (1 + np.exp(-0.25)), atol=0.002)  # the output's own rounding


def test_forward_and_backward_derivatives_agree():
    random = np.random.default_rng(0)
    inputs, directions = (
        tuple(jnp.asarray(a, jnp.float32) for a in random.standard_normal((3, 1, 6, 2, FEATURES)))
        for _ in range(2)
    )
    output, derivative = jax.jvp(attention, inputs, directions)
    gradients = jax.vjp(attention, *inputs)[1](output)
    expected = sum(jnp.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(jnp.vdot(output, derivative), expected, rtol=1e-4)
