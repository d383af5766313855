"""Low-pass filters, and a leaky ReLU that makes no aliases (Karras et al. 2021, StyleGAN3).

"Alias-free generative adversarial networks", sections 3.2 and C.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts when they are used: `scipy.signal` is slow to import
from jaxtyping import Array, Float

from genjax.filters import resample_axis


@functools.cache
def low_pass(
    num_taps: int, cutoff: float, half_width: float, rate: int, radial: bool = False
) -> tuple[float, ...] | Float[np.ndarray, "taps taps"]:
    """Design a low-pass filter of sum 1 by Kaiser's window (section C.1).

    Args:
        num_taps: even; or 1, for the filter that changes nothing.
        cutoff: frequency up to which signals pass.
        half_width: of the transition band around the cutoff.
        rate: samples per unit of length, as the frequencies are cycles per unit of length.
        radial: return an array of two axes, a jinc, which lets all directions pass alike, in place
            of the numbers of one axis of a separable filter.
    """
    if num_taps == 1:
        return (1.0,)
    if not radial:
        taps = scipy.signal.firwin(num_taps, cutoff, width=2 * half_width, fs=rate)
        return tuple(taps.tolist())
    places = (np.arange(num_taps) - (num_taps - 1) / 2) / rate
    radius = np.hypot(*np.meshgrid(places, places))
    jinc = scipy.special.j1(2 * np.pi * cutoff * radius) / (np.pi * radius)
    attenuation = scipy.signal.kaiser_atten(num_taps, 2 * half_width / (rate / 2))
    window = np.kaiser(num_taps, scipy.signal.kaiser_beta(attenuation))
    taps = jinc * np.outer(window, window)
    return taps / taps.sum()


def filtered_leaky_relu(
    x: Float[Array, "batch height width channels"],
    up_taps: tuple[float, ...],
    down_taps: tuple[float, ...] | Float[np.ndarray, "taps taps"],
    *,
    up: int,
    down: int,
    padding: tuple[int, int],
    slope: float,
    gain: float,
    clamp: float | None,
) -> Float[Array, "batch out_height out_width channels"]:
    """Return a leaky ReLU that is applied at a higher sampling rate, between two low-pass filters.

    The corners that it makes have frequencies above those that an image of pixels can hold. The
    second filter removes them.

    Args:
        up_taps, down_taps: the filters, of `low_pass`; the first is separable.
        up, down: factors of the sampling rate, before and after the activation.
        padding: pixels of zero before and after each axis at the higher rate; negative ones crop.
        slope: of the leaky ReLU for negative numbers; 1 for none.
        gain: factor of what the leaky ReLU returns.
        clamp: bound of what it returns; None for no bound.
    """
    x = _resample(x, up * np.asarray(up_taps), up, 1, padding)
    x = gain * jax.nn.leaky_relu(x, slope)
    x = x if clamp is None else jnp.clip(x, -clamp, clamp)
    if isinstance(down_taps, tuple):
        return _resample(x, np.asarray(down_taps), 1, down, (0, 0))
    return _filter_downsample(x, down_taps, down)


def _resample(x: Array, weights: np.ndarray, up: int, down: int, padding: tuple[int, int]) -> Array:
    """Apply `resample_axis` to height and width."""
    for axis in (1, 2):
        x = resample_axis(x, weights, axis, up, down, padding)
    return x


def _filter_downsample(x: Array, taps: np.ndarray, down: int) -> Array:
    """Filter each channel by the same two-dimensional taps, which are symmetric.

    Channels count as examples, because a depthwise convolution's gradient is slow on CPUs.
    """
    batch, height, width, channels = x.shape
    planes = jnp.moveaxis(x, -1, 1).reshape(batch * channels, height, width, 1)
    planes = jax.lax.conv_general_dilated(
        planes,
        jnp.asarray(taps, x.dtype)[..., None, None],
        (down, down),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.moveaxis(planes.reshape(batch, channels, *planes.shape[1:3]), 1, -1)
