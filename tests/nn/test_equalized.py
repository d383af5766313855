import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from genjax.nn.equalized import EqualizedConv, EqualizedDense, scaled_leaky_relu
from genjax.nn.fir import convolve_downsample


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_dense_in_float64(lr_multiplier):
    x, kernel, bias = normal(0, 3, 5), normal(1, 5, 4), normal(2, 4)
    params = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    output = EqualizedDense(4, lr_multiplier=lr_multiplier).apply(params, x)
    expected = lr_multiplier * (np.float64(x) @ np.float64(kernel) / np.sqrt(5) + bias)
    np.testing.assert_allclose(
        output, expected, rtol=1e-5, atol=1e-6 * lr_multiplier
    )  # float32, five terms


def test_convolution_in_float64():
    x, kernel, bias = normal(0, 2, 6, 7, 3), normal(1, 3, 3, 3, 2), normal(2, 2)
    params = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    output = EqualizedConv(2, 3).apply(params, x)
    for b, o in np.ndindex(2, 2):
        expected = sum(
            signal.correlate2d(np.float64(x[b, ..., i]), kernel[..., i, o], "same")
            for i in range(3)
        )
        np.testing.assert_allclose(
            output[b, ..., o], expected / np.sqrt(27) + bias[o], rtol=1e-5, atol=1e-5
        )


def test_convolution_that_resamples():
    x = normal(0, 2, 8, 8, 3)
    module = EqualizedConv(2, 3, use_bias=False, convolve=convolve_downsample)
    output, variables = module.init_with_output(jax.random.key(0), x)
    assert list(variables["params"]) == ["kernel"]
    expected = convolve_downsample(jnp.asarray(x), variables["params"]["kernel"] / np.sqrt(27))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


# The deviation of n independent normal numbers is off by 1/√(2n) of itself. Outputs share inputs
# and kernels, of which there are 16·128 at least: 1.6 %, and about as much again for the kernels.
@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
@pytest.mark.parametrize("fan_in", [16, 512])
def test_dense_keeps_the_variance_at_initialisation(fan_in, lr_multiplier):
    module = EqualizedDense(256, lr_multiplier=lr_multiplier)
    output, variables = module.init_with_output(jax.random.key(0), normal(0, 128, fan_in))
    np.testing.assert_allclose(variables["params"]["kernel"].std(), 1 / lr_multiplier, rtol=0.04)
    np.testing.assert_allclose(output.std(), 1, rtol=0.06)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_keeps_the_variance_at_initialisation(kernel_size):
    output, _ = EqualizedConv(64, kernel_size).init_with_output(
        jax.random.key(1), normal(1, 4, 10, 10, 64)
    )
    np.testing.assert_allclose(output[:, 1:-1, 1:-1].std(), 1, rtol=0.06)


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
@pytest.mark.parametrize("fan_in", [16, 256])
def test_a_step_moves_effective_weights_by_the_same_fraction_whatever_the_fan_in(
    fan_in, lr_multiplier
):
    module = EqualizedDense(64, lr_multiplier=lr_multiplier)
    params = module.init(jax.random.key(0), normal(0, 1, fan_in))
    effective = lambda params: module.apply(params, jnp.eye(fan_in))
    stepped = jax.tree.map(
        lambda a: a + 1e-2, params
    )  # what Adam's first step of 1e-2 does, signs aside
    change = effective(stepped) - effective(params) - 1e-2 * lr_multiplier  # less the bias's
    fraction = np.asarray(change) * np.sqrt(fan_in)  # of the initial deviation, 1/√fan_in
    # Rounding, 6e-8 of initial weights of up to 4.5 of these deviations.
    np.testing.assert_allclose(fraction, 1e-2 * lr_multiplier, rtol=0, atol=1e-6)


def test_initial_bias():
    params = EqualizedDense(4, initial_bias=1.0, lr_multiplier=0.1).init(
        jax.random.key(0), jnp.ones((1, 3))
    )
    np.testing.assert_array_equal(params["params"]["bias"], 1)


@pytest.mark.parametrize(
    "module, shape",
    [
        (EqualizedDense(4, dtype=jnp.bfloat16), (1, 3)),
        (EqualizedConv(4, 3, dtype=jnp.bfloat16), (1, 4, 4, 3)),
    ],
)
def test_types(module, shape):
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.ones(shape))
    assert output.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_scaled_leaky_relu():
    np.testing.assert_allclose(
        scaled_leaky_relu(jnp.array([-1.0, 0.0, 2.0])),
        [-0.2 * np.sqrt(2), 0, 2 * np.sqrt(2)],
        rtol=1e-6,
    )
