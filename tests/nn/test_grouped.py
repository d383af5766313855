import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.grouped import grouped_convolve


@pytest.mark.parametrize(("side", "groups"), [(3, 4), (1, 3), (5, 1)])
def test_value_and_derivatives_are_the_convolution_s(side, groups):
    keys = jax.random.split(jax.random.key(0), 3)
    with jax.enable_x64(True):
        x = jax.random.normal(keys[0], (2, 6, 5, 12), jnp.float64)
        kernel = jax.random.normal(keys[1], (side, side, 12 // groups, 24), jnp.float64)
        cotangent = jax.random.normal(keys[2], (2, 6, 5, 24), jnp.float64)
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
        found, expected = (
            jax.jit(functools.partial(jax.vjp, lambda *a, f=f: f(*a, (1, 1), "SAME", **options)))(
                x, kernel
            )
            for f in (grouped_convolve, jax.lax.conv_general_dilated)
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)
        for a, b in zip(found[1](cotangent), expected[1](cotangent), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
