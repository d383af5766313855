"""Resampling by a windowed sinc."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.audio.spectra import Waveforms, as_waveforms

ZEROS = 6  # zero crossings of the sinc on each side of its centre
ROLLOFF = 0.99  # the filter's cutoff, as a share of the lower Nyquist frequency


def sinc_kernel(
    times: Float[np.ndarray, "*shape"], rate: int, new_rate: int
) -> Float[np.ndarray, "*shape"]:
    """Return the weight of an input sample, `times` seconds from the output sample.

    With the cutoff c = 0.99·min(rate, new_rate) / 2 the weight is (2c / rate)·sinc(2c·t) under a
    Hann window that ends at the sixth zero of the sinc. It is torchaudio's `sinc_interp_hann` with
    its defaults, `lowpass_filter_width=6` and `rolloff=0.99`.
    """
    bandwidth = ROLLOFF * min(rate, new_rate)
    phase = np.clip(bandwidth * times, -ZEROS, ZEROS)
    return bandwidth / rate * np.sinc(phase) * np.cos(np.pi * phase / (2 * ZEROS)) ** 2


def resample(
    waveforms: Waveforms, rate: int, new_rate: int
) -> Float[Array, "batch new_samples channels"]:
    """Return waveforms at another sample rate, with ⌈samples·new_rate / rate⌉ samples.

    Output sample n is Σₖ x[k]·h(n / new_rate − k / rate) with `sinc_kernel` as h, where x is 0
    outside the waveform. The kernel holds new_rate / gcd filters, so the rates should have a large
    common divisor.

    Args:
        rate, new_rate: in Hz, whole numbers.

    Raises:
        ValueError: a rate is not positive, or waveforms are not floats with three axes.
    """
    if min(rate, new_rate) < 1:
        raise ValueError(f"rates of {rate} and {new_rate} Hz; give positive whole numbers")
    waveforms = as_waveforms(waveforms)
    if rate == new_rate:
        return waveforms
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor  # `old` inputs make `new` outputs
    reach = math.ceil(ZEROS * old / (ROLLOFF * min(old, new)))  # in input samples
    inputs, outputs = np.arange(-reach, reach + old)[:, None], np.arange(new)
    kernel = sinc_kernel(outputs / new - inputs / old, old, new)
    batch, samples, channels = waveforms.shape
    filtered = jax.lax.conv_general_dilated(
        waveforms.swapaxes(1, 2).reshape(batch * channels, samples, 1),
        jnp.asarray(kernel[:, None], jnp.float32),
        window_strides=(old,),
        padding=[(reach, reach + old)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    resampled = filtered.reshape(batch, channels, -1)[..., : -(-samples * new // old)]
    return resampled.swapaxes(1, 2)
