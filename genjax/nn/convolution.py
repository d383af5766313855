"""Convolutions for `flax.linen.Conv`: one with a fast gradient on CPUs, and one that enlarges.

`convolve` computes the gradient of the kernel faster than XLA on a CPU. `convolve_enlarged`
convolves an image of twice the sides without storing it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from genjax.nn.sharding import one_device

PLACES = 1024  # most positions of all images in a strip, whose arrays then fit a core's cache
LEAST_SIDE, LEAST_FEATURES = 32, 64  # strips are not faster below these sizes


def convolve(
    x: Float[Array, "batch height width features"],
    kernel: Float[Array, "rows columns features out_features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "batch out_height out_width out_features"]:
    """Return `jax.lax.conv_general_dilated`, whose gradient of the kernel is fast on one CPU.

    There the gradient of the kernel is a sum of matrix products over strips of rows. The sum takes
    a half to a third of the time of XLA's gradient. It is used where it pays: for float32, stride 1
    and large maps of many features.
    """
    convolution = functools.partial(
        jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
    )
    steps = [
        window_strides,
        options.get("lhs_dilation") or (1,),
        options.get("rhs_dilation") or (1,),
    ]
    plain = all(set(step) == {1} for step in steps) and kernel.shape[2] == x.shape[-1]
    large = min(x.shape[1:3]) >= LEAST_SIDE and min(kernel.shape[2:]) >= LEAST_FEATURES
    if not (plain and large and x.dtype == kernel.dtype == jnp.float32 and one_device()):
        return convolution(x, kernel)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
    by_strips = functools.partial(_by_strips, padding=padding, precision=options.get("precision"))

    @functools.partial(jax.checkpoint, prevent_cse=False)  # avoids storing padded `x` too
    def with_kernel(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=by_strips, default=convolution)

    @jax.custom_jvp
    def convolved(x, kernel):
        return convolution(x, kernel)

    def jvp(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        terms = []
        if not isinstance(dx, SymbolicZero):
            terms.append(convolution(dx, kernel))
        if not isinstance(dkernel, SymbolicZero):
            terms.append(with_kernel(x, dkernel))
        return convolved(x, kernel), sum(terms)

    convolved.defjvp(jvp, symbolic_zeros=True)
    return convolved(x, kernel)


def _by_strips(
    x: Array, kernel: Array, padding: Sequence[tuple[int, int]], precision: Any
) -> Array:
    """Convolve in a form whose transpose with respect to the kernel is fast on CPUs."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    batch = len(x)
    height, width = (x.shape[i + 1] - kernel.shape[i] + 1 for i in (0, 1))
    rows = max(
        n
        for n in range(1, height + 1)
        if height % n == 0 and (n == 1 or n * width * batch <= PLACES)
    )
    taps = [(r, s) for r in range(kernel.shape[0]) for s in range(kernel.shape[1])]
    matrix = kernel.reshape(-1, kernel.shape[-1]).T  # the layout that the transposed product needs

    @functools.partial(jax.checkpoint, prevent_cse=False)  # avoids storing all strips' neighbours
    def strip(first, matrix):
        here = jax.lax.dynamic_slice_in_dim(x, first, rows + kernel.shape[0] - 1, axis=1)
        neighbours = jnp.concatenate(
            [here[:, r : r + rows, s : s + width] for r, s in taps], axis=-1
        )
        return jax.lax.dot_general(neighbours, matrix, (((3,), (1,)), ((), ())), precision)

    y = jax.lax.map(lambda first: strip(first, matrix), jnp.arange(0, height, rows))
    return y.swapaxes(0, 1).reshape(batch, height, width, -1)


def convolve_enlarged(
    x: Float[Array, "batch height width features"],
    kernel: Float[Array, "3 3 features out_features"],
    window_strides: Sequence[int],
    padding: str,
    **options: Any,
) -> Float[Array, "batch 2*height 2*width out_features"]:
    """Double the sides of `x` by repeating pixels, then convolve with stride 1 and "SAME" padding.

    The 3×3 neighbours of an enlarged pixel are 2×2 pixels of `x`. So the result takes 4/9 of the
    multiply-adds, and the enlarged image is never stored. `window_strides` and `padding` are
    ignored; they are part of Flax's interface.
    """
    # TPUs skip zeros between pixels, but would interleave phases by three copies of the result.
    return jax.lax.platform_dependent(
        x,
        kernel,
        tpu=functools.partial(_enlarged_by_zeros, **options),
        default=functools.partial(_enlarged_by_phases, **options),
    )


def _enlarged_by_zeros(x: Array, kernel: Array, **options: Any) -> Array:
    """Compute `convolve_enlarged` as a convolution of `x` with zeros between its pixels.

    Its 4×4 kernel repeats the pixels too. This kernel is the sum of the 3×3 kernel's four shifts by
    up to one pixel.
    """
    shifts = [
        jnp.pad(kernel, ((p, 1 - p), (q, 1 - q), (0, 0), (0, 0))) for p in (0, 1) for q in (0, 1)
    ]
    options |= dict(lhs_dilation=(2, 2))
    return jax.lax.conv_general_dilated(x, sum(shifts), (1, 1), ((2, 2), (2, 2)), **options)


def _enlarged_by_phases(x: Array, kernel: Array, **options: Any) -> Array:
    """Compute `convolve_enlarged` as four convolutions, whose results interleave.

    Each gives the pixels at even or odd rows and at even or odd columns.
    """

    def halve(kernel, axis):
        first, second, third = jnp.unstack(kernel, axis=axis)
        return [
            jnp.stack(pair, axis) for pair in ((first, second + third), (first + second, third))
        ]

    phases = [
        convolve(x, taps, (1, 1), ((1 - p, p), (1 - q, q)), **options)
        for p, half in enumerate(halve(kernel, 0))
        for q, taps in enumerate(halve(half, 1))
    ]
    return rearrange(jnp.stack(phases, 3), "b h w (p q) features -> b (h p) (w q) features", p=2)
