"""Loudness as broadcasting measures it: ITU-R BS.1770-4, in LUFS."""

import math

import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts when they are used: `scipy.fft` is slow to import
from jaxtyping import Array, Complex, Float

from genjax.audio.spectra import Waveforms, as_waveforms

OFFSET = -0.691  # makes a 997 Hz sine at full scale in one channel read −3.01 LUFS
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, and LU below the mean of what passes the first
CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, left and right surround

# The analog filters whose bilinear transforms at 48 kHz are the standard's coefficients (tables 1
# and 2; Brecht De Man 2018, "Evaluation of implementations of the EBU R128 loudness measurement"):
# corner in Hz and quality; gains of the shelf, at its top and at its corner.
SHELF, SHELF_QUALITY = 1681.974450955533, 0.7071752369554196
TOP_GAIN = 10 ** (3.999843853973347 / 20)
CORNER_GAIN = TOP_GAIN**0.4996667741545416
HIGH_PASS, HIGH_PASS_QUALITY = 38.13547087602444, 0.5003270373238773
# The standard writes the high-pass filter with a numerator of 1, −2, 1, which is this gain.
_TANGENT = np.tan(np.pi * HIGH_PASS / 48_000)
HIGH_PASS_GAIN = 1 + _TANGENT / HIGH_PASS_QUALITY + _TANGENT**2
DECAY = 0.25  # seconds after which the filters' response is below 1e-20


def k_weighting(
    frequencies: Float[np.ndarray, " bins"], sample_rate: int
) -> Complex[np.ndarray, " bins"]:
    """Return the frequency response of the standard's two filters.

    At 48 kHz it is the response of the standard's coefficients. At other rates it is the bilinear
    transform of the same analog filters.

    Args:
        frequencies: in Hz, up to half the sample rate.
    """
    warped = 1j * np.tan(np.pi * frequencies / sample_rate)
    s = warped / np.tan(np.pi * SHELF / sample_rate)
    shelf = (TOP_GAIN * s**2 + CORNER_GAIN / SHELF_QUALITY * s + 1) / (s**2 + s / SHELF_QUALITY + 1)
    s = warped / np.tan(np.pi * HIGH_PASS / sample_rate)
    return shelf * HIGH_PASS_GAIN * s**2 / (s**2 + s / HIGH_PASS_QUALITY + 1)


def loudness(waveforms: Waveforms, sample_rate: int) -> Float[Array, " batch"]:
    """Return the integrated loudness of each waveform, in LUFS.

    Blocks of 0.4 s start every 0.1 s, each rounded to whole samples. The loudness is that of the
    blocks above two gates. The first gate is −70 LUFS. The second is 10 LU below the loudness of
    the blocks above the first gate. The loudness is −∞ if no block is above the gates.

    Args:
        waveforms: in [−1, 1]; up to five channels, in the order left, right, centre, left surround,
            right surround.

    Raises:
        ValueError: waveforms are not floats with three axes, are shorter than 0.4 s, or have more
            than five channels; or half the rate is below the shelf filter's corner.

    Source: ITU-R BS.1770-4 (2015), annex 1.
    """
    waveforms = as_waveforms(waveforms)
    _, samples, channels = waveforms.shape
    if sample_rate <= 2 * SHELF:
        raise ValueError(
            f"loudness at {sample_rate} Hz has no shelf filter at {SHELF:.0f} Hz; resample to "
            f"{math.ceil(2 * SHELF)} Hz or more"
        )
    hop = round(0.1 * sample_rate)
    if samples < 4 * hop or channels > len(CHANNEL_WEIGHTS):
        raise ValueError(
            f"waveforms have {samples} samples and {channels} channels; loudness at {sample_rate} "
            f"Hz needs {4 * hop} samples (0.4 s) or more and takes at most 5 channels"
        )
    padded = scipy.fft.next_fast_len(samples + round(DECAY * sample_rate), real=True)
    response = k_weighting(np.arange(padded // 2 + 1) * (sample_rate / padded), sample_rate)
    spectra = jnp.fft.rfft(waveforms, padded, axis=1) * jnp.asarray(response[:, None], "complex64")
    hops = samples // hop
    weighted = jnp.fft.irfft(spectra, padded, axis=1)[:, : hops * hop]
    powers = (weighted**2).reshape(len(waveforms), hops, hop, channels).mean(2)
    powers = powers @ jnp.asarray(CHANNEL_WEIGHTS[:channels], jnp.float32)
    blocks = sum(powers[:, i : i + hops - 3] for i in range(4)) / 4
    passed = ~(_lufs(blocks) <= ABSOLUTE_GATE)  # NaN passes, so it is not taken for silence
    relative = _lufs(_mean_where(blocks, passed)) + RELATIVE_GATE
    return _lufs(_mean_where(blocks, passed & ~(_lufs(blocks) <= relative[:, None])))


def _lufs(powers: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return OFFSET + 10 * jnp.log10(powers)


def _mean_where(values: Float[Array, "batch blocks"], chosen: Array) -> Float[Array, " batch"]:
    """Return the mean of chosen values, 0 if there are none."""
    return jnp.where(chosen, values, 0).sum(1) / jnp.maximum(chosen.sum(1), 1)
