"""Filtered activations; tests/pretrained compares them with the authors'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.filtered import filtered_leaky_relu, low_pass
from genjax.nn.fir import upfirdn


@pytest.mark.parametrize(
    ("up", "down", "padding"), [(2, 2, (9, 8)), (4, 2, (3, -5)), (1, 1, (0, 0)), (2, 4, (-7, 30))]
)
def test_a_slope_of_one_leaves_the_filters(up, down, padding):
    up_taps, down_taps = (low_pass(6 * n if n > 1 else 1, 2.0, 1.0, 16) for n in (up, down))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 14, 14, 3), np.float32))
    arguments = dict(up=up, down=down, padding=padding, slope=1.0, gain=1.0, clamp=None)

    @jax.jit
    def both(x):
        high = upfirdn(x, up_taps, up=up, padding=padding, gain=float(up**2))
        found = filtered_leaky_relu(x, up_taps, down_taps, **arguments)
        return found, upfirdn(high, down_taps, down=down)

    np.testing.assert_allclose(*both(x), atol=1e-5)
