"""Mel scales, their triangular filters, and log-mel spectrograms."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from genjax.audio.spectra import PadMode, Waveforms, stft


class MelScale(NamedTuple):
    """A scale of pitch: functions from Hz to mel and back, of NumPy arrays."""

    from_hertz: Callable[[ArrayLike], np.ndarray]
    to_hertz: Callable[[ArrayLike], np.ndarray]


# Slaney's Auditory Toolbox (1998): 3 mel for 200 Hz up to 1 kHz, then 27 mel for a factor of 6.4.
_LINEAR, _CORNER, _PER_OCTAVE = 3 / 200, 1000.0, 27 / np.log(6.4)


def _slaney_from_hertz(hertz: ArrayLike) -> np.ndarray:
    hertz = np.asarray(hertz, np.float64)
    above = _LINEAR * _CORNER + _PER_OCTAVE * np.log(np.maximum(hertz, _CORNER) / _CORNER)
    return np.where(hertz < _CORNER, _LINEAR * hertz, above)


def _slaney_to_hertz(mel: ArrayLike) -> np.ndarray:
    mel = np.asarray(mel, np.float64)
    above = _CORNER * np.exp((mel - _LINEAR * _CORNER) / _PER_OCTAVE)
    return np.where(mel < _LINEAR * _CORNER, mel / _LINEAR, above)


SLANEY = MelScale(_slaney_from_hertz, _slaney_to_hertz)
# O'Shaughnessy's formula (1987), with the constants of the HTK toolkit.
HTK = MelScale(
    lambda hertz: 2595 * np.log10(1 + np.asarray(hertz, np.float64) / 700),
    lambda mel: 700 * (10 ** (np.asarray(mel, np.float64) / 2595) - 1),
)


def mel_filters(
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    *,
    low: int | float = 0,
    high: int | float | None = None,
    scale: MelScale = SLANEY,
    unit_area: bool = True,
) -> Float[np.ndarray, "bins num_mels"]:
    """Return triangular filters, equally wide in mel: `spectrum @ filters` has the mel bands.

    Each filter rises from its predecessor's centre to its own and falls to its successor's, linear
    in Hz, as librosa's filters do. A band that lies between two frequencies of the FFT has an empty
    filter, of which a warning is given, as by librosa.

    Args:
        low, high: lowest and highest frequency, in Hz; `high` is half the sample rate by default.
        scale: `SLANEY` or `HTK`.
        unit_area: whether filters have an area of 1 Hz (Slaney's normalization) or a height of 1.

    Raises:
        ValueError: frequencies are not 0 ≤ low < high ≤ sample_rate / 2.
    """
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(
            f"mel filters from {low} to {high} Hz at {sample_rate} Hz; give 0 <= low < high <= "
            f"{sample_rate / 2}, half the sample rate"
        )
    frequencies = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    ends = scale.from_hertz(np.array([low, high]))
    edges = scale.to_hertz(np.linspace(*ends, num_mels + 2))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    filters = np.minimum(rising, falling).clip(0)
    empty = num_mels - np.count_nonzero(filters.any(axis=0))
    if empty:
        warnings.warn(
            f"{empty} of {num_mels} mel bands hold no frequency of an FFT of {n_fft} samples at "
            f"{sample_rate} Hz, so they are always 0; take fewer bands or a longer FFT",
            stacklevel=2,
        )
    return filters * 2 / (right - left) if unit_area else filters


def frame_length(filters: Float[np.ndarray, "bins num_mels"]) -> int:
    """Return the length of the frames whose spectra mel filters take, 2·(bins − 1).

    Raises:
        ValueError: filters are transposed, or are no matrix.
    """
    shape = np.shape(filters)
    # A bin lies in two bands at most, also where short frames have fewer bins than bands.
    if len(shape) != 2 or (shape[0] < shape[1] and np.count_nonzero(filters, axis=1).max() > 2):
        raise ValueError(
            f"filters have shape {shape}; expected [bins num_mels], as mel_filters gives them: "
            "transpose filters of librosa"
        )
    return 2 * (len(filters) - 1)


def log_mel_spectrogram(
    waveforms: Waveforms,
    filters: Float[np.ndarray, "bins num_mels"],
    hop: int,
    *,
    window: Float[np.ndarray, " window"] | None = None,
    padding: int | None = None,
    pad_mode: PadMode = "reflect",
    power: int | float = 1,
    clamp: float = 1e-5,
    log: Callable[[Array], Array] = jnp.log,
) -> Float[Array, "batch frames num_mels channels"]:
    """Return log(max(mel bands of |stft|^power, clamp)).

    These published forms use magnitudes (power 1) and natural logarithms, unless stated otherwise:

    - HiFi-GAN: filters up to 8 kHz, `padding=(n_fft - hop) // 2`.
    - LTX-2: the defaults.
    - Vocos: filters `scale=HTK, unit_area=False`, `clamp=1e-7`.
    - Whisper: `power=2, clamp=1e-10, log=jnp.log10`, before its scaling and without the last frame.

    Args:
        filters: of `mel_filters`; those of librosa are transposed. Their number of bins sets the
            length of frames, 2·(bins − 1).
        hop, window, padding, pad_mode: as of `stft`.
        power: 1 for magnitudes, 2 for powers.
        clamp: the value to which smaller bands are raised before the logarithm.
        log: `jnp.log` or `jnp.log10`.

    Raises:
        ValueError: filters are transposed, or as of `stft`.
    """
    n_fft = frame_length(filters)
    spectra = stft(waveforms, n_fft, hop, window=window, padding=padding, pad_mode=pad_mode)
    bands = jnp.einsum(
        "btfc,fm->btmc",
        jnp.abs(spectra) ** power,
        jnp.asarray(filters, jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return log(jnp.maximum(bands, clamp))
