"""The causal convolution's forms for CPUs, for TPUs and for all others are the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.causal import CausalConv, _convolve, _convolve_frames, _convolve_rows


@pytest.mark.parametrize("form", [_convolve_frames, _convolve_rows])
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (2, 5, 1)])
def test_forms_agree_with_their_derivatives(form, kernel_size):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 5, 6, 7, 3), np.float32))
    kernel = jnp.asarray(random.standard_normal((*kernel_size, 3, 4), np.float32))
    padding = [(side // 2, side // 2) for side in kernel_size[1:]]

    def all_of(form):
        def loss(x, kernel):
            y = form(x, kernel, padding)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    ours, expected = (jax.jit(all_of, static_argnums=0)(each) for each in (form, _convolve))
    assert ours[0].shape == (2, 5 - kernel_size[0] + 1, 6, 7, 4)
    for a, b in zip(ours, expected, strict=True):
        # Sums of up to 252 products in float32, in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize("form", [_convolve_frames, _convolve_rows])
def test_forms_agree_on_frames_that_are_padded_before(form):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 4, 6, 5, 3), np.float32))
    kernel = jnp.asarray(random.standard_normal((3, 3, 3, 3, 4), np.float32))
    ours, expected = (
        jax.jit(functools.partial(each, padding=[(0, 0), (0, 0)]))(x, kernel)
        for each in (form, _convolve)
    )
    assert ours.shape == (2, 2, 4, 3, 4)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_frame_depends_on_no_later_one():
    module, x = CausalConv(2), jnp.ones((1, 4, 3, 3, 2))
    variables = jax.jit(module.init)(jax.random.key(0), x)
    jacobian = jax.jit(jax.jacobian(lambda x: module.apply(variables, x).sum((0, 2, 3, 4))))(x)
    depends = np.abs(jacobian).max((1, 3, 4, 5)) > 0
    np.testing.assert_array_equal(depends, np.tri(4, dtype=bool) & ~np.tri(4, k=-3, dtype=bool))
