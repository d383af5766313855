"""Overlapping windows in time for networks whose outputs depend on a few frames on each side.

Windows are exact, unlike blended tiles: each gives only the outputs that depend on nothing outside
the window. A window at an end of the sequence starts or ends there, so that the network pads where
it would pad the whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped


def apply_windows(
    function: Callable[[Array], PyTree[Array]],
    sequence: Shaped[Array, "batch time ..."],
    *,
    size: int,
    margin: int,
    stride: int = 1,
    scale: int = 1,
    end_frames: int = 0,
) -> PyTree[Shaped[Array, "batch outputs ..."]]:
    """Return `function(sequence)`, an array or a tree, window by window in one program.

    The program takes the memory of one window, in addition to its output.

    Args:
        function: maps a sequence to one with `scale` outputs for each `stride` places.
        size: number of frames of `stride` places whose outputs a window gives.
        margin: number of frames on each side of a frame that its outputs depend on.
        end_frames: number of frames at the end of a sequence, or of a window, that have no outputs.

    Raises:
        ValueError: `stride` does not divide the sequence, or the function does not return `scale`
            outputs for each frame of a window.
    """
    if sequence.shape[1] % stride:
        raise ValueError(
            f"windows take whole frames of {stride} places; got {sequence.shape[1]}: crop or pad"
        )
    frames = sequence.shape[1] // stride - end_frames
    size, window = min(size, frames), size + 2 * margin
    if window >= frames:
        return function(sequence)

    def window_at(start: Array) -> Array:
        length = (window + end_frames) * stride
        return jax.lax.dynamic_slice_in_dim(sequence, start * stride, length, axis=1)

    def step(whole: PyTree, number: Array) -> tuple[PyTree, None]:
        first = jnp.minimum(number * size, frames - size)
        start = jnp.clip(first - margin, 0, frames - window)
        outputs = function(window_at(start))

        def put(whole: Array, output: Array) -> Array:
            kept = jax.lax.dynamic_slice_in_dim(output, (first - start) * scale, size * scale, 1)
            return jax.lax.dynamic_update_slice_in_dim(whole, kept, first * scale, axis=1)

        return jax.tree.map(put, whole, outputs), None

    shapes = jax.eval_shape(function, jax.eval_shape(window_at, 0))
    for output in jax.tree.leaves(shapes):
        if output.shape[1] != window * scale:
            raise ValueError(
                f"a window of {window} frames has {output.shape[1]} outputs; windows need {scale} "
                f"for each frame, {window * scale}: give another scale, or decode at once after "
                "odd strides"
            )
    whole = jax.tree.map(
        lambda a: jnp.zeros((a.shape[0], frames * scale, *a.shape[2:]), a.dtype), shapes
    )
    return jax.lax.scan(step, whole, jnp.arange(-(-frames // size)))[0]
