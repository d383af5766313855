"""Filters along one axis that resample, for networks and for augmentations alike."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def filter_axis(
    x: Float[Array, "..."],
    weights: Float[np.ndarray, " taps"] | Float[Array, " taps"],
    axis: int,
    up: int,
    down: int,
    padding: tuple[int, int],
) -> Float[Array, "..."]:
    """Insert `up` − 1 zeros after every element, pad, filter, and keep every `down`-th element.

    It is a sum of shifted arrays. The derivatives of a depthwise convolution took a hundred times
    as long on XLA's CPU back end.

    Args:
        weights: the taps of a convolution, which are not normalised.
        padding: zeros before and after, counted after the insertion; negative ones crop.

    Raises:
        ValueError: x is not of floats.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"filters take floats; got {x.dtype}, in which weights would be rounded")
    before, after = padding
    ends = [(0, 0, 0)] * x.ndim
    ends[axis] = (before, after + up - 1, up - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ends)
    count = (x.shape[axis] - len(weights)) // down + 1
    shifted = lambda start: jax.lax.slice_in_dim(
        x, start, start + (count - 1) * down + 1, down, axis
    )
    return sum(shifted(i) * weights[-1 - i].astype(x.dtype) for i in range(len(weights)))


def resample_axis(
    x: Float[Array, "..."],
    weights: Float[np.ndarray, " taps"],
    axis: int,
    up: int,
    down: int,
    padding: tuple[int, int],
) -> Float[Array, "..."]:
    """Return `filter_axis`, whose derivative is the same sum with reversed weights.

    XLA's CPU back end takes many times as long for the derivative that it finds itself. A rule of
    its own has no forward mode, so functions under `jax.jvp` keep to `filter_axis`.
    """

    @jax.custom_vjp
    def apply(x):
        return filter_axis(x, weights, axis, up, down, padding)

    def backward(_, cotangent):
        before = len(weights) - 1 - padding[0]
        length = (x.shape[axis] - 1) * up + len(weights)
        ends = before, length - before - cotangent.shape[axis] * down
        return (resample_axis(cotangent, weights[::-1], axis, down, up, ends),)

    apply.defvjp(lambda x: (apply(x), None), backward)
    return apply(x)
