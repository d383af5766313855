"""Distances of reconstructed sound to its original: of spectra, mel bands and waveforms.

Waveforms are `[batch samples channels]` in [−1, 1]. Every measure is a number for each waveform,
averaged over channels. Integers raise a ValueError. The measures are pure functions of `jax.numpy`.
The spectral distances are also training losses: their gradients are finite everywhere, also for
silence.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from genjax.audio import as_waveforms, hann_window, log_mel_spectrogram, mel_filters, stft

Waveforms = Float[ArrayLike, "batch samples channels"]
# Frames, hops and Hann windows of Parallel WaveGAN, in samples.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
LEAST_POWER = 1e-7  # that a bin of a spectrum counts as
TINY = float(np.finfo(np.float32).tiny)


def log_spectral_distance(
    waveforms: Waveforms, originals: Waveforms, n_fft: int = 2048, hop: int = 512
) -> Float[Array, " batch"]:
    """Return the log-spectral distance of each waveform, in dB.

    It is the root mean square difference of a frame's power spectra in dB, averaged over frames.
    Powers below 1e-7 count as 1e-7, so silence has a finite distance. With the default frames, this
    power is the peak of a sine at −124 dB of full scale, and about the noise of 16 bits.

    Raises:
        ValueError: shapes differ, or waveforms are too short for a frame.

    Source: Gray & Markel 1976, "Distance measures for speech processing", equation 12 with p = 2.
    """
    decibels = [10 * jnp.log10(_powers(x, n_fft, hop)) for x in _checked_pair(waveforms, originals)]
    squares = jnp.mean((decibels[0] - decibels[1]) ** 2, axis=2)
    return _root(squares).mean((1, 2))


class SpectralDistance(NamedTuple):
    """The two parts of the multi-resolution distance of spectra; a training loss is their sum.

    Attributes:
        convergence: ‖|X| − |Y|‖ / ‖|Y|‖, the spectral convergence, without unit.
        log_magnitude: the mean of |ln|X| − ln|Y||, in nepers (8.69 dB).
    """

    convergence: Float[Array, " batch"]
    log_magnitude: Float[Array, " batch"]


def multi_resolution_stft_distance(waveforms: Waveforms, originals: Waveforms) -> SpectralDistance:
    """Return the distances of magnitudes of spectra, averaged over three resolutions.

    Powers below 1e-7 count as 1e-7, so the distance to silence is finite, too.

    Raises:
        ValueError: shapes differ, or waveforms have 1,024 samples or fewer.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN", equations 4 to 6 and table 1.
    """
    pair = _checked_pair(waveforms, originals)
    parts = []
    for n_fft, hop, size in RESOLUTIONS:
        x, y = (jnp.sqrt(_powers(each, n_fft, hop, hann_window(size))) for each in pair)
        norms = [_root(jnp.sum(each**2, axis=(1, 2))) for each in (x - y, y)]
        logs = jnp.abs(jnp.log(x) - jnp.log(y))
        parts.append(((norms[0] / norms[1]).mean(-1), logs.mean((1, 2, 3))))
    return SpectralDistance(*(sum(part) / len(RESOLUTIONS) for part in zip(*parts, strict=True)))


def mel_distance(
    waveforms: Waveforms,
    originals: Waveforms,
    sample_rate: int,
    *,
    n_fft: int = 1024,
    hop: int = 256,
    num_mels: int = 80,
) -> Float[Array, " batch"]:
    """Return the mean absolute difference of log-mel spectrograms, in nepers (8.69 dB).

    Spectrograms are those of `genjax.audio.log_mel_spectrogram`: magnitudes in Slaney's bands of
    unit area up to half the sample rate, natural logarithms, 1e-5 at least. Frames are centred on
    multiples of `hop`; HiFi-GAN's lie half a hop later.

    Raises:
        ValueError: shapes differ, or waveforms are too short for a frame.

    Source: Kong et al. 2020, "HiFi-GAN", equation 3.
    """
    filters = mel_filters(sample_rate, n_fft, num_mels)
    x, y = (log_mel_spectrogram(each, filters, hop) for each in _checked_pair(waveforms, originals))
    return jnp.abs(x - y).mean((1, 2, 3))


def si_sdr(waveforms: Waveforms, originals: Waveforms) -> Float[Array, " batch"]:
    """Return the scale-invariant signal-to-distortion ratio of each waveform, in dB.

    For the waveform x and its original y it is 10·log₁₀(‖αy‖² / ‖x − αy‖²) with α = ⟨x, y⟩ / ‖y‖².
    A scaled copy has more than 100 dB, limited by float32. A copy without any distortion is finite,
    too, at about 400 dB. Silence has −∞, and so has a waveform with a silent channel. Means of
    waveforms are not subtracted.

    Raises:
        ValueError: shapes differ.

    Source: Le Roux et al. 2019, "SDR – half-baked or well done?", equation 4.
    """
    x, y = _checked_pair(waveforms, originals)
    target = (x * y).sum(1, keepdims=True) / jnp.maximum((y**2).sum(1, keepdims=True), TINY) * y
    signal, distortion = (target**2).sum(1), ((x - target) ** 2).sum(1)
    # Finite without distortion. Their quotient would be ∞, and NaN in a mean with −∞.
    return 10 * (jnp.log10(signal) - jnp.log10(jnp.maximum(distortion, TINY))).mean(-1)


def _powers(
    waveforms: Array, n_fft: int, hop: int, window: np.ndarray | None = None
) -> Float[Array, "batch frames bins channels"]:
    """Return powers of bins, at least `LEAST_POWER`."""
    spectra = stft(waveforms, n_fft, hop, window=window)
    return jnp.maximum(spectra.real**2 + spectra.imag**2, LEAST_POWER)


def _root(squares: Array) -> Array:
    """Return the square root, whose derivative at 0 is 0."""
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def _checked_pair(waveforms: ArrayLike, originals: ArrayLike) -> tuple[Array, Array]:
    if np.ndim(waveforms) != 3 or np.shape(waveforms) != np.shape(originals):
        raise ValueError(
            f"waveforms have shape {np.shape(waveforms)} and originals {np.shape(originals)}; "
            "expected the same [batch samples channels]: give each waveform its original"
        )
    return as_waveforms(waveforms), as_waveforms(originals)
