"""Filters that resample, against NumPy's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.filters import filter_axis, resample_axis

WEIGHTS = np.array([1.0, -2.0, 3.0, 0.5, 0.25])
CASES = [(1, 1, (0, 0)), (2, 1, (3, 2)), (1, 2, (2, 2)), (2, 3, (4, -1)), (1, 2, (-1, -1))]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("up, down, padding", CASES)
def test_an_axis_is_resampled_by_the_convolution_of_numpy(up, down, padding, float64):
    x = np.random.default_rng(0).normal(size=(2, 12, 3))
    spread = np.zeros((2, 12 * up, 3))
    spread[:, ::up] = x
    before, after = padding
    ends = [(0, 0), (max(before, 0), max(after, 0)), (0, 0)]
    padded = np.pad(spread, ends)[:, max(-before, 0) :]
    padded = padded[:, : padded.shape[1] + min(after, 0)]
    convolve = lambda a: np.convolve(a, WEIGHTS, "valid")[::down]
    expected = np.apply_along_axis(convolve, 1, padded)
    for function in (filter_axis, resample_axis):
        found = function(jnp.asarray(x), WEIGHTS, 1, up, down, padding)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("up, down, padding", CASES)
def test_its_own_derivative_is_the_derivative(up, down, padding, float64):
    """Also the derivative of a derivative, as penalties of gradients take, and under `vmap`."""
    x = jax.random.normal(jax.random.key(0), (2, 12, 3), jnp.float64)

    def gradients(function):
        one = lambda x: (function(x, WEIGHTS, 0, up, down, padding) ** 3).sum()
        slope = jax.vmap(jax.grad(one))
        return slope(x), jax.grad(lambda x: (slope(x) ** 2).sum())(x)

    for found, expected in zip(gradients(resample_axis), gradients(filter_axis), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9)
