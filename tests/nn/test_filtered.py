"""Filtered activations and their derivative; tests/pretrained compares them with the authors'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.filtered import filtered_leaky_relu, low_pass
from genjax.nn.fir import upfirdn


@pytest.mark.parametrize(
    ("up", "down", "padding"), [(2, 2, (9, 8)), (4, 2, (3, -5)), (1, 1, (0, 0)), (2, 4, (-7, 30))]
)
def test_derivatives_are_those_of_plain_resampling(up, down, padding):
    """Once and twice, against the derivatives that JAX finds for `upfirdn`."""
    up_taps, down_taps = (low_pass(6 * n if n > 1 else 1, 2.0, 1.0, 16) for n in (up, down))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 14, 14, 3), np.float32))

    def ours(x):
        arguments = dict(up=up, down=down, padding=padding, slope=1.0, gain=1.0, clamp=None)
        return filtered_leaky_relu(x, up_taps, down_taps, **arguments)

    def plain(x):
        return upfirdn(
            upfirdn(x, up_taps, up=up, padding=padding, gain=float(up**2)), down_taps, down=down
        )

    def slope(function):
        loss = lambda x: jnp.sum(jnp.sin(function(x)))
        first = jax.grad(loss)
        second = jax.grad(lambda x: jnp.sum(first(x) ** 2))
        return jax.jit(lambda x: (first(x), second(x)))(x)

    np.testing.assert_allclose(ours(x), plain(x), atol=1e-5)
    for found, expected in zip(*map(slope, (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("clamp", "ends"), [(None, (-40, 200)), (30.0, (-30, 30))])
def test_what_the_leaky_relu_returns_is_scaled_and_then_bounded(clamp, ends):
    one = low_pass(1, 2.0, 1.0, 16)
    x = jnp.array([-100.0, -10, 5, 100]).reshape(1, 2, 2, 1)
    form = dict(up=1, down=1, padding=(0, 0), slope=0.2, gain=2.0, clamp=clamp)
    found = filtered_leaky_relu(x, one, one, **form)
    np.testing.assert_allclose(found.ravel(), [ends[0], -4, 10, ends[1]], rtol=1e-6)
