"""Resampling of images with finite impulse response filters, and convolutions that resample.

They keep a network's up- and down-sampling free of aliasing, as in Zhang 2019 ("Making
convolutional networks shift-invariant again") and Karras et al. 2020 (StyleGAN2, appendix B).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from genjax.filters import filter_axis

BINOMIAL = (1, 3, 3, 1)  # the filter of StyleGAN2; any filter is normalised to sum 1 before use
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def upfirdn(
    x: Float[Array, "batch height width channels"],
    taps: Sequence[int | float],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    gain: float = 1.0,
) -> Float[Array, "batch out_height out_width channels"]:
    """Insert `up` − 1 zeros after every pixel, pad, filter, and keep every `down`-th pixel.

    Args:
        taps: one axis of a separable filter; normalised to sum 1.
        padding: pixels of zero before and after each axis, counted after the insertion; negative
            ones crop.
        gain: factor of the output; up² keeps the mean brightness.
    """
    weights = np.asarray(taps, np.float64) / np.sum(taps) * np.sqrt(gain)
    for axis in (1, 2):
        x = filter_axis(x, weights, axis, up, down, padding)
    return x


def upsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int | float] = BINOMIAL
) -> Float[Array, "batch 2*height 2*width channels"]:
    """Double the sides and keep the brightness."""
    return upfirdn(x, taps, up=2, padding=((len(taps) + 1) // 2, (len(taps) - 2) // 2), gain=4.0)


def downsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int | float] = BINOMIAL
) -> Float[Array, "batch height//2 width//2 channels"]:
    """Halve the sides, which are even, and keep the brightness."""
    return upfirdn(x, taps, down=2, padding=((len(taps) - 1) // 2, (len(taps) - 2) // 2))


def _convolve(
    x: Array, kernel: Array, stride: int = 1, dilation: int = 1, padding: int = 0
) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels out_channels"],
) -> Float[Array, "batch height width out_channels"]:
    """Return the cross-correlation with a kernel of odd side, with zeros around the image."""
    return _convolve(x, kernel, padding=kernel.shape[0] // 2)


def convolve_beyond(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels out_channels"],
) -> Float[Array, "batch out_height out_width out_channels"]:
    """Return the cross-correlation with a kernel wherever it meets the image: side − 1 more."""
    return _convolve(x, kernel, padding=kernel.shape[0] - 1)


def upsample_convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels out_channels"],
    taps: Sequence[int | float] = BINOMIAL,
) -> Float[Array, "batch 2*height 2*width out_channels"]:
    """Return `convolve(upsample(x), kernel)` but for the border: the image is padded once.

    Filter and kernel commute, so the kernel goes first and skips the inserted zeros: a quarter of
    the products.
    """
    side = kernel.shape[0]
    if side == 1:
        return upsample(_convolve(x, kernel), taps)
    # Everything that the kernel can reach (side − 1 around), less what the filter and the "same"
    # size leave out.
    x = _convolve(x, kernel, dilation=2, padding=side - 1)
    excess = side // 2 - (side - 1)
    before, after = (len(taps) + 1) // 2 + excess, (len(taps) - 2) // 2 + excess + 1
    return upfirdn(x, taps, padding=(before, after), gain=4.0)


def convolve_downsample(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels out_channels"],
    taps: Sequence[int | float] = BINOMIAL,
) -> Float[Array, "batch height//2 width//2 out_channels"]:
    """Return `downsample(convolve(x, kernel))` but for the border: the filter goes first.

    Filter and kernel commute, so the filter goes first and the kernel computes only what is kept: a
    quarter of the products. A kernel of side 1 needs no neighbours, so there the filter computes
    only what is kept, too.
    """
    side = kernel.shape[0]
    if side == 1:
        return _convolve(downsample(x, taps), kernel)
    margin = side // 2
    x = upfirdn(x, taps, padding=((len(taps) - 1) // 2 + margin, (len(taps) - 2) // 2 + margin))
    return _convolve(x, kernel, stride=2)
