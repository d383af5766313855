"""Waveforms from magnitudes or mel bands, without phases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from genjax.audio.mel import frame_length
from genjax.audio.spectra import PadMode, istft, stft

MOMENTUM = 0.99
TINY = float(np.finfo(np.float32).tiny)


def griffin_lim(
    magnitudes: Float[ArrayLike, "batch frames bins channels"],
    n_fft: int,
    hop: int,
    *,
    num_steps: int = 32,
    window: Float[np.ndarray, " window"] | None = None,
    padding: int | None = None,
    pad_mode: PadMode = "reflect",
    length: int | None = None,
) -> Float[Array, "batch samples channels"]:
    """Return waveforms whose `stft` has about these magnitudes.

    Each step takes the phases of the spectrogram of the nearest waveform, and moves further in the
    direction of the last change. Phases start at 0.

    Args:
        n_fft, hop, window, padding, pad_mode, length: as of `stft` and `istft`.

    Raises:
        ValueError: as of `stft` and `istft`.

    Source: Perraudin et al. 2013, "A fast Griffin-Lim algorithm", with α = 0.99.
    """
    magnitudes = jnp.asarray(magnitudes, jnp.float32)
    form = dict(n_fft=n_fft, hop=hop, window=window, padding=padding)
    count, whole = magnitudes.shape[1], None
    if length is not None:
        # A waveform cut shorter than its frames would have fewer of them, so cut it at the end.
        before = n_fft // 2 if padding is None else padding
        whole = max(length, hop * (count - 1) + n_fft - 2 * before)
    invert = functools.partial(istft, **form)
    transform = functools.partial(stft, **form, pad_mode=pad_mode)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        phases, last = carry
        rebuilt = transform(invert(magnitudes * phases, length=whole))[:, :count]
        ahead = rebuilt - MOMENTUM / (1 + MOMENTUM) * last
        return (ahead / (jnp.abs(ahead) + TINY), rebuilt), None

    zeros = jnp.zeros_like(magnitudes, jnp.complex64)
    (phases, _), _ = jax.lax.scan(step, (zeros + 1, zeros), length=num_steps)
    return invert(magnitudes * phases, length=length)


def from_mel_bands(
    bands: Float[ArrayLike, "batch frames num_mels channels"],
    filters: Float[np.ndarray, "bins num_mels"],
    hop: int,
    *,
    num_steps: int = 32,
    padding: int | None = None,
    length: int | None = None,
) -> Float[Array, "batch samples channels"]:
    """Return waveforms whose magnitudes have about these mel bands.

    The magnitudes are the least-squares solution of the filters' equations, and 0 where this
    solution is negative. `griffin_lim` finds the phases.

    Args:
        bands: magnitudes, not their logarithms.
        filters: of `mel_filters`, those of the bands.
        num_steps, hop, padding, length: as of `griffin_lim`.

    Raises:
        ValueError: filters are transposed, bands do not have four axes or are not those of the
            filters, or as of `griffin_lim`.
    """
    n_fft, num_mels = frame_length(filters), np.shape(filters)[1]
    if np.ndim(bands) != 4 or np.shape(bands)[2] != num_mels:
        raise ValueError(
            f"bands have shape {np.shape(bands)}; expected [batch frames {num_mels} channels], the "
            "bands of the filters"
        )
    inverse = jnp.asarray(np.linalg.pinv(filters), jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    magnitudes = jnp.einsum("btmc,mf->btfc", jnp.asarray(bands), inverse, precision=exact)
    form = dict(num_steps=num_steps, padding=padding, length=length)
    return griffin_lim(jnp.maximum(magnitudes, 0), n_fft, hop, **form)
