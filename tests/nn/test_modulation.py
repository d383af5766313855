import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.modulation import per_frame, standardize

EPSILON = 0.3
RANDOM = np.random.default_rng(0)
X, DIRECTION, WEIGHTS = jnp.asarray(RANDOM.standard_normal((3, 2, 5, 7)), jnp.float32)
flax_norm = lambda x: nn.LayerNorm(EPSILON, use_bias=False, use_scale=False).apply({}, x)
own_norm = lambda x: standardize(EPSILON, x)


def test_standardize_against_float64():
    x = 3 + np.float64(X)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(
        own_norm(jnp.float32(x)), expected, atol=1e-5
    )  # squares of about ten in float32
    assert own_norm(jnp.bfloat16(x)).dtype == jnp.float32


def test_features_that_are_all_equal_stay_finite():
    """Rounding would make the variance of some of these numbers −0.06."""
    x = jnp.broadcast_to(jnp.linspace(100.0, 1000.0, 64)[:, None], (64, 24))
    assert jnp.all(jnp.isfinite(standardize(1e-6, x)))


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_those_of_flax(order):
    """In forward and in reverse mode, of the norm and of its gradient."""

    def derivatives(function):
        if order == 2:
            first = function
            function = lambda x: jnp.sin(jax.vjp(first, x)[1](WEIGHTS)[0])
        return jax.jvp(function, (X,), (DIRECTION,))[1], jax.vjp(function, X)[1](WEIGHTS)[0]

    for actual, expected in zip(derivatives(own_norm), derivatives(flax_norm), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)  # a hundred roundings of float32


def test_tokens_have_the_vector_of_their_frame():
    vectors = X[:, :2]
    found = per_frame(vectors, 6)
    np.testing.assert_array_equal(found, np.stack([vectors[:, i // 3] for i in range(6)], axis=1))
    assert per_frame(X[:, :1], 6).shape == (2, 1, 7)
