"""How exactly images move and turn with their generator's input (Karras et al. 2021, StyleGAN3).

"Alias-free generative adversarial networks", section 3 and appendix E. The measures compare a moved
image with the image of the moved input, where both are known, in decibels.
"""

import functools
import math

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.signal` is slow to import
from jaxtyping import Bool, Float

LOBES = 3  # of the Lanczos windows
UPSAMPLED = 4  # what images are upsampled by before they are turned
RANGE = 2.0  # of pixels, which are in [-1, 1]

Images = Float[np.ndarray, "batch height width channels"]
Mask = Bool[np.ndarray, "height width"]


def equivariance(expected: Images, found: Images, mask: Mask) -> float:
    """Return the peak signal-to-noise ratio of images within a mask, in dB (equation 25).

    It is NaN for an empty mask, such as that of a small image that is turned.

    Args:
        expected: the images, moved or turned.
        found: the images of the moved or turned input.
    """
    squares = np.square(expected.astype(np.float64) - found)[:, mask]
    return decibels(float(squares.sum()), squares.size)


def decibels(squares: float, count: int) -> float:
    """Return the peak signal-to-noise ratio of a sum of `count` squared errors, in dB."""
    if not squares:
        return math.inf if count else math.nan
    return float(10 * np.log10(RANGE**2 * count / squares))


def translated_by_pixels(images: Images, x: int, y: int) -> tuple[Images, Mask]:
    """Return images moved to the right and down by pixels, and where they are known (EQ-T)."""
    height, width = images.shape[1:3]
    rows, columns = np.arange(height) - y, np.arange(width) - x
    known = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    moved = np.roll(images, (y, x), axis=(1, 2))
    return moved * known[None, ..., None], known


def translated(images: Images, x: float, y: float) -> tuple[Images, Mask]:
    """Return images moved to the right and down by fractions of pixels (EQ-T of fractions, E.2).

    The filter is a sinc in a Lanczos window.
    """
    known = np.ones(images.shape[1:3], bool)
    for axis, shift in ((1, y), (2, x)):
        size, whole = images.shape[axis], int(np.floor(shift))
        taps = np.arange(2 * LOBES) - (LOBES - 1)
        kernel = np.sinc(taps - (shift - whole)) * np.sinc((taps - (shift - whole)) / LOBES)
        spread = np.zeros(2 * (abs(whole) + LOBES) + 1)
        spread[len(spread) // 2 + whole + taps] = kernel / kernel.sum()
        images = scipy.ndimage.convolve1d(images, spread, axis, mode="constant")
        places = np.arange(size)
        inside = (places >= whole + LOBES) & (places < size + whole - (LOBES - 1))
        known &= inside[:, None] if axis == 1 else inside
    return images, known


def rotated(images: Images, angle: float) -> tuple[Images, Mask]:
    """Return images turned by an angle, with the frequencies that old and new pixels hold (E.3).

    Args:
        angle: in radians, counterclockwise as rows grow downwards.
    """
    turn = _rotation(angle)
    taps = _band_limit(turn, UPSAMPLED)
    height, width = images.shape[1:3]
    zeros = np.zeros((len(images), height * UPSAMPLED, width * UPSAMPLED, images.shape[3]))
    zeros[:, ::UPSAMPLED, ::UPSAMPLED] = images
    kernel = UPSAMPLED**2 * taps[None, :, :, None]
    large = scipy.signal.fftconvolve(zeros, kernel, axes=(1, 2), mode="full")
    known = np.zeros(large.shape[1:3], bool)
    inner = slice(len(taps) - UPSAMPLED // 2, -len(taps) - UPSAMPLED // 2)  # as in their program
    known[inner, inner] = True
    places = np.stack(np.meshgrid(_centered(width), _centered(height)))  # x, y in pixels
    x, y = np.einsum("ij,jhw->ihw", np.linalg.inv(turn), places)
    middle = lambda size, place: UPSAMPLED * (place + (size - 1) / 2) + len(taps) // 2
    at = np.stack([middle(height, y), middle(width, x)])
    sample = functools.partial(scipy.ndimage.map_coordinates, coordinates=at, mode="grid-constant")
    planes = np.moveaxis(large, -1, 1)
    turned = np.stack([[sample(plane, order=1) for plane in image] for image in planes])
    return np.moveaxis(turned, 1, -1), sample(known.astype(float), order=0) > 0.5


def pseudo_rotated(images: Images, angle: float) -> tuple[Images, Mask]:
    """Return images with only the frequencies that `rotated` leaves, not turned (E.3)."""
    taps = _band_limit(_rotation(-angle), 1)
    filtered = scipy.signal.fftconvolve(images, taps[None, :, :, None], axes=(1, 2), mode="same")
    known, edge = np.zeros(images.shape[1:3], bool), len(taps) // 2
    known[edge:-edge, edge:-edge] = True
    return filtered, known


def _centered(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _band_limit(
    matrix: Float[np.ndarray, "2 2"], up: int, reach: int = 2 * LOBES, far: int = 64
) -> Float[np.ndarray, "side side"]:
    """Return the filter of what both the old pixels' and the new pixels' grid can hold.

    It is the product of two windowed sincs in frequency, one of which is turned, and so their
    convolution in space. The taps of each of the `up`² phases sum to 1/up².
    """
    places = np.arange(-far * up + 1, far * up) / up
    x, y = np.meshgrid(places, places)
    turned = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y]))
    square = lambda f, axes: f(axes[0]) * f(axes[1])
    lanczos = lambda a: np.where(np.abs(a) < LOBES, np.sinc(a / LOBES), 0.0)
    both = lambda f: scipy.signal.fftconvolve(square(f, (x, y)), square(f, turned), mode="same")
    taps = both(np.sinc) * both(lanczos)
    edge = (far - reach) * up
    taps = np.pad(taps[edge:-edge, edge:-edge], ((0, 1), (0, 1)))
    phases = taps.reshape(2 * reach, up, 2 * reach, up)
    phases = phases / phases.sum(axis=(0, 2), keepdims=True) / up**2
    return phases.reshape(taps.shape)[:-1, :-1]
