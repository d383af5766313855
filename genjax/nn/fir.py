"""Resampling of images with finite impulse response filters, and convolutions that resample.

So a network's up- and down-sampling is free of aliasing, as in Zhang 2019 ("Making convolutional
networks shift-invariant again") and Karras et al. 2020 (StyleGAN2, appendix B).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    """Inserts `up` − 1 zeros after every pixel, pads, filters, and keeps every `down`-th pixel.

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


def filter_axis(
    x: Float[Array, "..."],
    weights: Float[np.ndarray, " taps"],
    axis: int,
    up: int,
    down: int,
    padding: tuple[int, int],
) -> Float[Array, "..."]:
    """Apply one axis of `upfirdn`. The weights are not normalised.

    The transpose is the same operation: `up` and `down` swap, and the weights are reversed. On one
    CPU core XLA takes up to 18 times as long for the transpose that JAX finds.
    """
    taps, size, before = len(weights), x.shape[axis], padding[0]
    out_size = (size * up + sum(padding) - taps) // down + 1
    before_transpose = taps - 1 - before
    after_transpose = (size - 1) * up + taps - before_transpose - out_size * down
    ends = before_transpose, after_transpose
    forward = lambda x: _add_shifted(x, weights, axis, up, down, padding)
    backward = lambda y: _add_shifted(y, weights[::-1], axis, down, up, ends)

    @jax.custom_jvp  # so that a program without derivatives has nothing but the sum
    def apply(x):
        return forward(x)

    apply.defjvp(
        lambda primals, tangents: (
            apply(*primals),
            _apply_linear(forward, backward, *tangents, axis, out_size),
        )
    )
    return apply(x)


def _add_shifted(
    x: Array,
    weights: np.ndarray,
    axis: int,
    up: int,
    down: int,
    padding: tuple[int, int],
) -> Array:
    """Compute `filter_axis` as a sum of shifted images, which XLA fuses."""
    ends = [(0, 0, 0)] * x.ndim
    ends[axis] = (padding[0], padding[1] + up - 1, up - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ends)
    count = (x.shape[axis] - len(weights)) // down + 1
    shifted = lambda start: jax.lax.slice_in_dim(
        x, start, start + (count - 1) * down + 1, down, axis
    )
    return sum(shifted(i) * weights[-1 - i].astype(x.dtype) for i in range(len(weights)))


def _apply_linear(
    function: Callable[[Array], Array],
    transpose: Callable[[Array], Array],
    x: Array,
    axis: int,
    out_size: int,
) -> Array:
    """Return `function(x)` of a linear function F that changes one axis, with a given transpose.

    y = F·x solves [[I, 0], [−F, I]]·(x, y) = (x, 0). `custom_linear_solve` takes the transpose and
    keeps `vmap`, which `linear_call` does not. XLA removes the rows that are added here.
    """
    parts = lambda pair: jnp.split(pair, [x.shape[axis]], axis)
    pair = lambda x, y: jnp.concatenate([x, y], axis)

    def matrix(vector):
        x, y = parts(vector)
        return pair(x, y - function(x))

    def solve(_, vector):
        x, y = parts(vector)
        return pair(x, y + function(x))

    def solve_transposed(_, vector):
        x, y = parts(vector)
        return pair(x + transpose(y), y)

    ends = [(0, 0, 0)] * x.ndim
    ends[axis] = (0, out_size, 0)
    right = jax.lax.pad(x, jnp.zeros((), x.dtype), ends)
    return parts(jax.lax.custom_linear_solve(matrix, right, solve, solve_transposed))[1]


def upsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int | float] = BINOMIAL
) -> Float[Array, "batch 2*height 2*width channels"]:
    """Twice the side, same brightness."""
    return upfirdn(x, taps, up=2, padding=((len(taps) + 1) // 2, (len(taps) - 2) // 2), gain=4.0)


def downsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int | float] = BINOMIAL
) -> Float[Array, "batch height//2 width//2 channels"]:
    """Half the side, same brightness; even sides."""
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
    """The cross-correlation with a kernel of odd side, zeros around the image."""
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
