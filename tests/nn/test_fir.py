"""Filters against SciPy and explicit sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from genjax.devices.cost import multiply_adds
from genjax.nn.fir import (
    BINOMIAL,
    convolve,
    convolve_downsample,
    downsample,
    upfirdn,
    upsample,
    upsample_convolve,
)

SKEW = (1, 2, 4, 9)  # of no symmetry, so that a flipped filter is seen
ROUNDING = dict(rtol=0, atol=1e-13)  # float64, sums of at most a few hundred terms of size 1


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def zeros_between(image, factor):
    spread = np.zeros([side * factor for side in image.shape])
    spread[::factor, ::factor] = image
    return spread


def pad_or_crop(image, before, after):
    padded = np.pad(image, [(max(before, 0), max(after, 0))] * 2)
    return padded[
        max(-before, 0) : len(padded) - max(-after, 0),
        max(-before, 0) : len(padded) - max(-after, 0),
    ]


def filtered(image, taps):
    return signal.convolve2d(image, np.outer(taps, taps) / np.sum(taps) ** 2, mode="valid")


def each_channel(function, x):
    """`function` of every image and channel of `x` [batch height width channels]."""
    return np.stack(
        [np.stack([function(x[b, ..., c]) for c in range(x.shape[-1])], -1) for b in range(len(x))]
    )


def correlated(x, kernel):
    """Valid cross-correlation, summed over input channels."""
    one = lambda image, o: sum(
        signal.correlate2d(image[..., i], kernel[..., i, o], mode="valid")
        for i in range(x.shape[-1])
    )
    return np.stack([np.stack([one(image, o) for o in range(kernel.shape[-1])], -1) for image in x])


@pytest.mark.parametrize("taps", [SKEW, (1, 3, 2)])
@pytest.mark.parametrize(
    "up, down, padding, gain",
    [
        (1, 1, (0, 0), 1.0),
        (2, 1, (2, 1), 4.0),
        (1, 2, (1, 1), 1.0),
        (3, 2, (4, 0), 9.0),
        (2, 1, (-1, -2), 4.0),
    ],
)
def test_upfirdn_is_insertion_padding_filter_and_decimation(taps, up, down, padding, gain):
    x = normal(0, 2, 7, 7, 3)
    expected = each_channel(
        lambda a: (
            gain * filtered(pad_or_crop(zeros_between(a, up), *padding), taps)[::down, ::down]
        ),
        x,
    )
    output = upfirdn(jnp.asarray(x), taps, up=up, down=down, padding=padding, gain=gain)
    np.testing.assert_allclose(output, expected, **ROUNDING)


def both_axes(x, taps, up, down):
    """SciPy's own up- and down-sampling of rows, then of columns."""
    taps = np.asarray(taps) / np.sum(taps)
    return signal.upfirdn(taps, signal.upfirdn(taps, x, up, down, axis=1), up, down, axis=2)


def test_upsample_is_scipys_less_its_tails():
    x = normal(1, 2, 6, 8, 3)
    full = 4 * both_axes(x, SKEW, up=2, down=1)
    np.testing.assert_allclose(upsample(jnp.asarray(x), SKEW), full[:, 1:13, 1:17], **ROUNDING)


def test_downsample_is_scipys_less_its_tails():
    x = normal(2, 2, 6, 8, 3)
    full = both_axes(x, SKEW, up=1, down=2)
    np.testing.assert_allclose(downsample(jnp.asarray(x), SKEW), full[:, 1:4, 1:5], **ROUNDING)


def test_brightness_is_kept_and_both_directions_are_adjoint():
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(upsample(ones)[:, 1:-1, 1:-1], 1, **ROUNDING)
    np.testing.assert_allclose(downsample(ones)[:, 1:-1, 1:-1], 1, **ROUNDING)
    small, large = normal(3, 2, 4, 4, 3), normal(4, 2, 8, 8, 3)
    up, down = upsample(jnp.asarray(small)), downsample(jnp.asarray(large))
    np.testing.assert_allclose(jnp.vdot(up, large), 4 * jnp.vdot(small, down), rtol=1e-12)


@pytest.mark.parametrize("side, taps", [(1, SKEW), (3, SKEW), (3, (1, 3, 2)), (5, SKEW)])
def test_upsampling_convolution_is_filter_then_kernel(side, taps):
    x, kernel = normal(5, 2, 5, 5, 3), normal(6, side, side, 3, 2)
    margin = side // 2
    before, after = (len(taps) + 1) // 2 + margin, (len(taps) - 2) // 2 + margin
    up = each_channel(
        lambda a: 4 * filtered(pad_or_crop(zeros_between(a, 2), before, after), taps), x
    )
    output = upsample_convolve(jnp.asarray(x), jnp.asarray(kernel), taps)
    assert output.shape == (2, 10, 10, 2)
    np.testing.assert_allclose(output, correlated(up, kernel), **ROUNDING)


@pytest.mark.parametrize("side, taps", [(1, SKEW), (3, SKEW), (3, (1, 3, 2)), (5, SKEW)])
def test_downsampling_convolution_is_kernel_then_filter(side, taps):
    x, kernel = normal(7, 2, 8, 8, 3), normal(8, side, side, 3, 2)
    margin = side // 2
    before, after = (len(taps) - 1) // 2 + margin, (len(taps) - 2) // 2 + margin
    padded = each_channel(lambda a: pad_or_crop(a, before, after), x)
    expected = each_channel(lambda a: filtered(a, taps), correlated(padded, kernel))[:, ::2, ::2]
    output = convolve_downsample(jnp.asarray(x), jnp.asarray(kernel), taps)
    assert output.shape == (2, 4, 4, 2)
    np.testing.assert_allclose(output, expected, **ROUNDING)


def test_convolution_is_scipys_correlation():
    x, kernel = normal(9, 2, 5, 6, 3), normal(10, 3, 3, 3, 2)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    np.testing.assert_allclose(
        convolve(jnp.asarray(x), jnp.asarray(kernel)), correlated(padded, kernel), **ROUNDING
    )


def test_a_quarter_of_the_products():
    x, kernel = jnp.ones((1, 16, 16, 64)), jnp.ones((3, 3, 64, 64))
    full = multiply_adds(convolve, upsample(x), kernel)
    # The filter adds 16 products a pixel to the 9·64 of the kernel; the border adds some.
    assert 0.25 * full <= multiply_adds(upsample_convolve, x, kernel) < 0.33 * full
    full = multiply_adds(convolve, x, kernel)
    assert 0.25 * full <= multiply_adds(convolve_downsample, x, kernel) < 0.33 * full


def test_the_filter_is_exact_in_bfloat16():
    impulse = jnp.zeros((1, 7, 7, 1), jnp.bfloat16).at[0, 3, 3, 0].set(1)
    taps = np.asarray(BINOMIAL) / 8
    np.testing.assert_array_equal(
        upfirdn(impulse, BINOMIAL)[0, :, :, 0].astype(jnp.float64), np.outer(taps, taps)
    )


def test_bytes_are_refused(unchecked_annotations):
    """The taps of a filter would be rounded to 0."""
    for resample in (upsample, downsample):
        with pytest.raises(ValueError, match="filters take floats; got uint8"):
            resample(jnp.full((1, 8, 8, 1), 200, jnp.uint8), (1, 3, 3, 1))
