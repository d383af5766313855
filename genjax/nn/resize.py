"""Resizing of images as other libraries do it, to the last digits: what pretrained networks were trained with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, equation 15 (with a = −1/2), the interpolating cubic of slope a at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _gather(places: np.ndarray, weights: np.ndarray, inputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of sums over inputs at `places` `[outputs taps]`; beyond the border its value continues."""
    matrix = np.zeros((len(places), inputs))
    np.add.at(matrix, (np.arange(len(places))[:, None], places.clip(0, inputs - 1)), weights)
    return matrix


def corner_bilinear(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """TensorFlow 1's `resize_bilinear`: output i lies at i·inputs/outputs, so that the corners at the start meet.

    No low-pass filter when there are fewer outputs.
    """
    # In float32, as theirs is.
    positions = np.arange(outputs, dtype=np.float32) * np.float32(inputs / outputs)
    places = positions.astype(int)
    fraction = positions - places
    return _gather(places[:, None] + [0, 1], np.stack([1 - fraction, fraction], axis=1), inputs)


def bicubic(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """PyTorch's `interpolate(mode="bicubic")`: a = −3/4, pixels' centres at half numbers, no low-pass filter."""
    positions = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    places = np.floor(positions).astype(int)[:, None] + np.arange(-1, 3)
    return _gather(places, _cubic(positions[:, None] - places, -0.75), inputs)


def antialiased_bicubic(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """Pillow's bicubic, and PyTorch's with `antialias=True`: a = −1/2, wider where there are fewer outputs; inside the image only."""
    scale = inputs / outputs
    positions = (np.arange(outputs) + 0.5) * scale - 0.5
    weights = _cubic((np.arange(inputs) - positions[:, None]) / max(scale, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def resize(
    images: Float[Array, "batch height width channels"],
    height: int,
    width: int,
    method: Callable[[int, int], np.ndarray],
) -> Float[Array, "batch out_height out_width channels"]:
    """Images of `height`×`width`, in float32, rounded and clipped nowhere.

    Args:
        method: from numbers of inputs and outputs to the matrix along an axis, one of this file's functions.
    """
    rows, columns = (
        jnp.asarray(method(inputs, outputs), jnp.float32)
        for inputs, outputs in zip(images.shape[1:3], (height, width), strict=True)
    )
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("xw,bhwc->bhxc", columns, images.astype(jnp.float32), precision=precision)
    return jnp.einsum("yh,bhxc->byxc", rows, images, precision=precision)
