"""Resizing of images as in other libraries, for networks that were trained with them.

(`jax.image.resize` with "cubic" is Pillow's bicubic interpolation, and PyTorch's with
`antialias=True`.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel (1981) with the slope a that OpenCV took; Keys takes −1/2."""
    x, a = np.abs(x), -0.75
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _gather(
    places: np.ndarray, weights: np.ndarray, inputs: int
) -> Float[np.ndarray, "outputs inputs"]:
    """Return the matrix of sums over inputs at `places` `[outputs taps]`; borders continue."""
    matrix = np.zeros((len(places), inputs))
    np.add.at(matrix, (np.arange(len(places))[:, None], places.clip(0, inputs - 1)), weights)
    return matrix


def corner_bilinear(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Return TensorFlow 1's `resize_bilinear`: output i lies at i·inputs/outputs.

    No low-pass filter when there are fewer outputs.
    """
    # In float32, as in TensorFlow.
    positions = np.arange(outputs, dtype=np.float32) * np.float32(inputs / outputs)
    places = positions.astype(int)
    fraction = positions - places
    return _gather(places[:, None] + [0, 1], np.stack([1 - fraction, fraction], axis=1), inputs)


def bicubic(inputs: int, outputs: int, offset: float = 0.0) -> Float[np.ndarray, "outputs inputs"]:
    """Return PyTorch's `interpolate(mode="bicubic")`: a = −3/4, and no low-pass filter.

    Args:
        offset: outputs lie as densely as `outputs + offset` would on the whole side, if not 0.
    """
    positions = (np.arange(outputs) + 0.5) * inputs / (outputs + offset) - 0.5
    places = np.floor(positions).astype(int)[:, None] + np.arange(-1, 3)
    return _gather(places, _cubic(positions[:, None] - places), inputs)


def bilinear(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Return PyTorch's `interpolate(mode="bilinear")` between centres of pixels.

    There is no low-pass filter: an output sees two inputs, however many there are.
    """
    positions = ((np.arange(outputs) + 0.5) * inputs / outputs - 0.5).clip(0)
    places = positions.astype(int)
    fraction = positions - places
    return _gather(places[:, None] + [0, 1], np.stack([1 - fraction, fraction], axis=1), inputs)


def area(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Return PyTorch's `interpolate(mode="area")`: means over the inputs that an output touches."""
    ends = np.arange(outputs + 1) * inputs
    first, last = ends[:-1] // outputs, -(-ends[1:] // outputs)
    touched = (first[:, None] <= np.arange(inputs)) & (np.arange(inputs) < last[:, None])
    return touched / touched.sum(axis=1, keepdims=True)


def resize(
    images: Float[Array, "batch height width channels"],
    height: int,
    width: int,
    method: Callable[[int, int], np.ndarray],
) -> Float[Array, "batch out_height out_width channels"]:
    """Return images of `height`×`width` in float32, neither rounded nor clipped.

    Args:
        method: from numbers of inputs and outputs to the matrix along an axis, one of this file's
            functions.
    """
    rows, columns = (
        jnp.asarray(method(inputs, outputs), jnp.float32)
        for inputs, outputs in zip(images.shape[1:3], (height, width), strict=True)
    )
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("xw,bhwc->bhxc", columns, images.astype(jnp.float32), precision=precision)
    return jnp.einsum("yh,bhxc->byxc", rows, images, precision=precision)


def eight_bit_colours(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width 3"]:
    """Return images in [−1, 1] as the whole numbers 0 … 255 of a file; one channel becomes grey.

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have shape {images.shape}; expected [batch height width channels] with 1 or 3 "
            "channels"
        )
    values = ((images.astype(jnp.float32) + 1) * 127.5).round().clip(0, 255)
    return jnp.broadcast_to(values, (*images.shape[:3], 3))
