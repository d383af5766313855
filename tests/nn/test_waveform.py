"""Layers over waveforms, compared with sums written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.waveform import Snake, SnakeBeta, WaveConv, WaveConvTranspose

RNG = np.random.default_rng(0)
WAVE = jnp.asarray(RNG.standard_normal((2, 11, 3)), jnp.float32)


def randomized(module, x):
    """Return variables whose every value is random."""
    variables = module.init(jax.random.key(0), x)
    return jax.tree.map(lambda a: jnp.asarray(RNG.uniform(0.2, 1, a.shape), a.dtype), variables)


def test_snake_adds_a_squared_sine():
    params = randomized(Snake(), WAVE)
    alpha = np.asarray(params["params"]["alpha"])
    expected = WAVE + np.sin(alpha * WAVE) ** 2 / alpha
    np.testing.assert_allclose(Snake().apply(params, WAVE), expected, rtol=1e-5, atol=1e-6)
    params = randomized(SnakeBeta(), WAVE)
    alpha, beta = (np.exp(np.asarray(params["params"][name])) for name in ("alpha", "beta"))
    expected = WAVE + np.sin(alpha * WAVE) ** 2 / beta
    np.testing.assert_allclose(SnakeBeta().apply(params, WAVE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "size, stride, dilation", [(7, 1, 3), (8, 4, 1), (6, 3, 1)], ids=["dilated", "strided", "odd"]
)
def test_a_convolution_is_its_sum(size, stride, dilation):
    module = WaveConv(5, size, stride, dilation)
    variables = randomized(module, WAVE)
    kernel, gain, bias = (np.asarray(variables["params"][n]) for n in ("kernel", "gain", "bias"))
    kernel = gain * kernel / np.sqrt((kernel**2).sum((0, 1)))
    padding = -(-stride // 2) if stride > 1 else dilation * (size - 1) // 2
    x = np.pad(WAVE, ((0, 0), (padding, padding), (0, 0)))
    count = (x.shape[1] - dilation * (size - 1) - 1) // stride + 1
    expected = np.stack(
        [
            sum(x[:, t * stride + dilation * i] @ kernel[i] for i in range(size)) + bias
            for t in range(count)
        ],
        axis=1,
    )
    np.testing.assert_allclose(module.apply(variables, WAVE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "stride, size, padding",
    [(4, 8, None), (3, 6, None), (2, 8, 3), (3, 3, 0)],
    ids=["even", "odd", "four_taps", "one_tap"],
)
def test_a_transposed_convolution_spreads_every_sample(stride, size, padding):
    module = WaveConvTranspose(5, stride, size, padding)
    variables = randomized(module, WAVE)
    kernel, gain, bias = (np.asarray(variables["params"][n]) for n in ("kernel", "gain", "bias"))
    kernel = gain[:, None] * kernel / np.sqrt((kernel**2).sum((0, 2)))[:, None]
    whole = np.zeros((2, 10 * stride + size, 5))
    for t in range(11):
        whole[:, t * stride : t * stride + size] += np.einsum("bc,kcf->bkf", WAVE[:, t], kernel)
    cut = -(-stride // 2) if padding is None else padding
    expected = whole[:, cut : whole.shape[1] - cut] + bias
    np.testing.assert_allclose(module.apply(variables, WAVE), expected, rtol=1e-5, atol=1e-6)


def test_weight_norm_starts_as_the_plain_layer_and_ignores_the_length_of_kernels():
    module, plain = WaveConv(5), WaveConv(5, weight_norm=False)
    variables = module.init(jax.random.key(0), WAVE)
    params = variables["params"]
    expected = plain.apply({"params": {n: params[n] for n in ("kernel", "bias")}}, WAVE)
    np.testing.assert_allclose(module.apply(variables, WAVE), expected, rtol=1e-5, atol=1e-6)
    longer = {"params": params | {"kernel": 3 * params["kernel"]}}
    np.testing.assert_allclose(module.apply(longer, WAVE), expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValueError, match="kernel_size is 7 for stride 2"):
        WaveConvTranspose(5, 2, 7).init(jax.random.key(0), WAVE)
