"""How close reconstructed images are to their originals, pixel by pixel: PSNR and SSIM.

Images are `[batch height width channels]`, both bytes or both floats in [−1, 1], so the range of
values is 255 or 2. Floats are not rounded. The literature's figures are of bytes: round with
`genjax.data.to_uint8` before comparing with them.
"""

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.ndimage` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from genjax.metrics.border import check_finite

Images = Shaped[ArrayLike, "batch height width channels"]
WINDOW, DEVIATION = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(images: Images, originals: Images) -> Float[np.ndarray, " batch"]:
    """Return the peak signal-to-noise ratio of each image, in dB.

    It is 10·log₁₀(range² / mean squared error), so it is infinite for equal images. Floats in [0,
    1] would count as 6 dB too much, because the range of floats is 2.

    Raises:
        ValueError: shapes differ or do not have four axes, one array is bytes and the other floats,
            or values are not finite.
    """
    images, originals, span = _as_pair(images, originals)
    error = ((images - originals) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / error)


def ssim(images: Images, originals: Images) -> Float[np.ndarray, " batch"]:
    """Return the structural similarity of each image, at most 1.

    It is the mean over all windows within the image, and over channels (the paper's images are
    grey). Windows are Gaussian, 11×11 pixels with deviation 1.5; K₁ = 0.01, K₂ = 0.03.

    Raises:
        ValueError: as of `psnr`, or images are smaller than the window.

    Source: Wang et al. 2004, equations 13 to 17.
    """
    images, originals, span = _as_pair(images, originals)
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"images have shape {images.shape}; expected sides of {WINDOW} or more, the window's: "
            "take larger images"
        )
    mean_a, mean_b = _smooth(images), _smooth(originals)
    variances = _smooth(images**2) - mean_a**2 + _smooth(originals**2) - mean_b**2
    covariance = _smooth(images * originals) - mean_a * mean_b
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean(axis=(1, 2, 3))


def _smooth(images: np.ndarray) -> np.ndarray:
    """Return means under the window, wherever it lies within the image."""
    half = WINDOW // 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * DEVIATION**2))
    for axis in (1, 2):
        images = scipy.ndimage.correlate1d(images, weights / weights.sum(), axis=axis)
    return images[:, half:-half, half:-half]


def _as_pair(images: ArrayLike, originals: ArrayLike) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both arrays in float64, and the range of their values."""
    images, originals = np.asarray(images), np.asarray(originals)
    if images.ndim != 4 or images.shape != originals.shape:
        raise ValueError(
            f"images have shape {images.shape} and originals {originals.shape}; expected the same "
            "[batch height width channels]: give each image its original, and videos frame by frame"
        )
    kinds = images.dtype, originals.dtype
    if kinds == (np.uint8, np.uint8):
        span = 255.0
    elif all(kind.kind == "f" or kind.name == "bfloat16" for kind in kinds):
        span = 2.0
    else:
        raise ValueError(
            f"images are {kinds[0]} and originals {kinds[1]}; expected both uint8, or both floats "
            "in [-1, 1]: convert by genjax.data.to_float or to_uint8"
        )
    images, originals = images.astype(np.float64), originals.astype(np.float64)
    check_finite(images, "images")
    check_finite(originals, "originals")
    return images, originals, span
