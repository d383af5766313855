"""The energy of fine detail, which reconstructions lose first."""

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.fft` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import check_finite


def high_frequency_energy(
    images: Float[ArrayLike, "batch height width channels"], cutoff: float = 0.5
) -> Float[np.ndarray, " batch"]:
    """Return each image's mean square at radial frequencies above `cutoff` times Nyquist's.

    The unit is the square of the images' unit. At cutoff 0 it is the variance of each channel's
    pixels, averaged over channels. Divide by the energy of the originals for the share of detail
    that is kept.

    Frequencies are those of the cosine transform, k/(2·side) cycles per pixel along a side. This
    transform mirrors the image at its borders, so a jump from border to border is no detail. The
    radial frequency is √(f_y² + f_x²), at most √2 of Nyquist's 1/2.

    Raises:
        ValueError: images do not have four axes, or are not finite.
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {images.shape}; expected [batch height width channels]: "
            "give videos frame by frame"
        )
    check_finite(images, "images")
    height, width = images.shape[1:3]
    # Orthonormal, so that squares of coefficients add up to those of pixels.
    coefficients = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")
    power = (coefficients**2).mean(axis=-1) / (height * width)
    fractions = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    return power[:, fractions > cutoff].sum(axis=-1)
