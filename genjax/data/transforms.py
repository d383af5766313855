"""Transforms of images: conversion between bytes and floats, crops and mirroring.

Images are bytes where they are stored and sent, and floats where networks see them. Sound is int16
there. The functions that convert use array methods only, so they take NumPy and JAX arrays and work
inside `jit`. With `to_float` at the start of the compiled step, only a quarter of the bytes goes to
the device.

`flip_images` belongs in the compiled step. All functions of an example and a generator are for
`Batches(…, transform=…)`: they run on the host, one image at a time, and suit images that vary in
size. `resize`, `center_crop`, `random_crop` and `compose` return such functions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int16, Key, Shaped, UInt8

Example = Mapping[str, np.ndarray]
AnyArray = Array | np.ndarray
Transform = Callable[[Example, np.random.Generator], Example]


def _check_type(array: AnyArray, wanted: Any, description: str) -> None:
    """Raise ValueError if an array has another type, whose range would be another."""
    if not jnp.issubdtype(array.dtype, wanted):
        raise ValueError(f"expected {description}; got {array.dtype}: convert it first")


def to_float(
    images: Shaped[Array | np.ndarray, "... height width channels"],
) -> Float32[Array | np.ndarray, "... height width channels"]:
    """Convert bytes 0 … 255 to floats in [−1, 1]: `value / 127.5 − 1`.

    Raises:
        ValueError: the images are not uint8.
    """
    _check_type(images, np.uint8, "images of bytes, uint8")
    return images.astype("float32") / 127.5 - 1


def to_uint8(
    images: Shaped[Array | np.ndarray, "... height width channels"],
) -> UInt8[Array | np.ndarray, "... height width channels"]:
    """Convert floats in [−1, 1] to the nearest bytes, the inverse of `to_float`; clip others.

    Raises:
        ValueError: the images are not floats.
    """
    _check_type(images, jnp.floating, "images of floats in [−1, 1]")
    return ((images.astype("float32") + 1) * 127.5).round().clip(0, 255).astype("uint8")


def sound_to_float(sounds: Shaped[AnyArray, "... samples channels"]) -> Float32[AnyArray, "..."]:
    """Convert 16-bit sound to floats in [−1, 1): `value / 2¹⁵`.

    Raises:
        ValueError: the sounds are not int16.
    """
    _check_type(sounds, np.int16, "sounds of 16 bits, int16")
    return sounds.astype("float32") / 2**15


def sound_to_int16(sounds: Shaped[AnyArray, "... samples channels"]) -> Int16[AnyArray, "..."]:
    """Convert floats to the nearest 16-bit sound, the inverse of `sound_to_float`; clip others.

    Raises:
        ValueError: the sounds are not floats.
    """
    _check_type(sounds, jnp.floating, "sounds of floats in [−1, 1]")
    return (sounds.astype("float32") * 2**15).round().clip(-(2**15), 2**15 - 1).astype("int16")


def flip_images(
    key: Key[Array, ""], images: Shaped[Array, "batch *frames height width channels"]
) -> Shaped[Array, "batch *frames height width channels"]:
    """Mirror each image or clip, left to right, with probability one half."""
    flipped = jax.random.bernoulli(key, shape=(len(images), *[1] * (images.ndim - 1)))
    return jnp.where(flipped, jnp.flip(images, -2), images)


def _image(example: Example) -> np.ndarray:
    """Return an example's image; raise ValueError unless it has three axes and a pixel."""
    image = example["image"]
    if np.ndim(image) != 3 or not np.size(image):
        raise ValueError(
            f"an image has shape {np.shape(image)}; expected [height width channels] of one example"
        )
    return image


def flip_example(example: Example, generator: np.random.Generator) -> Example:
    """Mirror the image, left to right, with probability one half.

    Raises:
        ValueError: the image does not have three axes.
    """
    image = _image(example)
    return {**example, "image": image[:, ::-1] if generator.random() < 0.5 else image}


def compose(*transforms: Transform) -> Transform:
    """Return the transforms in sequence: `compose(resize(256), random_crop(256), flip_example)`."""

    def composed(example: Example, generator: np.random.Generator) -> Example:
        for transform in transforms:
            example = transform(example, generator)
        return example

    return composed


def resize(size: int) -> Transform:
    """Return a transform that resizes an image until its shorter side has `size` pixels.

    Proportions are kept. A box filter halves the image while the shorter side stays at least
    `size`; Pillow's antialiased bicubic filter does the rest. With `center_crop(size)` this
    prepares ImageNet as the literature does, and published Fréchet distances depend on it.

    Raises:
        ValueError: an image does not have three axes.

    Source: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis (2021), their code's
    `center_crop_arr`.
    """

    def resized(example: Example, generator: np.random.Generator) -> Example:
        from PIL import Image

        image = _image(example)
        channels = image.shape[2]
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        while min(picture.size) >= 2 * size:
            picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
        scale = size / min(picture.size)
        picture = picture.resize(
            [round(side * scale) for side in picture.size], Image.Resampling.BICUBIC
        )
        pixels = np.asarray(picture)
        return {**example, "image": pixels.reshape(*pixels.shape[:2], channels)}

    return resized


def center_crop(size: int) -> Transform:
    """Return a transform that crops the middle `size`×`size` pixels.

    An odd margin loses its larger half at the bottom and right.

    Raises:
        ValueError: an image is smaller than the crop, or does not have three axes.
    """
    return lambda example, generator: _crop(example, size, lambda margin: margin // 2)


def random_crop(size: int) -> Transform:
    """Return a transform that crops `size`×`size` pixels at a uniformly drawn place.

    Raises:
        ValueError: an image is smaller than the crop, or does not have three axes.
    """
    return lambda example, generator: _crop(
        example, size, lambda margin: int(generator.integers(margin + 1))
    )


def _crop(example: Example, size: int, offset: Callable[[int], int]) -> Example:
    image = _image(example)
    if min(image.shape[:2]) < size:
        raise ValueError(
            f"an image of shape {image.shape} is smaller than the crop of {size}: "
            f"resize({size}) first"
        )
    top, left = (offset(side - size) for side in image.shape[:2])
    return {**example, "image": image[top : top + size, left : left + size]}
