"""The short-time Fourier transform and its inverse.

Both have the conventions of librosa and `torch.stft`: bins are sums without normalization, and the
phase of a frame counts from its first sample.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

Waveforms = Float[ArrayLike, "batch samples channels"]
PadMode = Literal["reflect", "constant"]
LEAST_OVERLAP = 1e-10  # the least sum of squared windows that the inverse divides by


def as_waveforms(
    waveforms: ArrayLike, channels: int | None = None
) -> Float[Array, "batch samples channels"]:
    """Return waveforms in float32.

    Args:
        channels: the number of channels that a network takes; None for any.

    Raises:
        ValueError: waveforms are not floats with three axes, or have other channels.
    """
    waveforms = jnp.asarray(waveforms)
    if waveforms.ndim != 3 or not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise ValueError(
            "waveforms are floats in [−1, 1], [batch samples channels]; got "
            f"{waveforms.dtype} {list(waveforms.shape)}: add axes of 1, and convert int16 by "
            "genjax.data.sound_to_float"
        )
    if channels not in (None, waveforms.shape[2]):
        raise ValueError(
            f"waveforms {list(waveforms.shape)} have {waveforms.shape[2]} channels; this network "
            f"takes {channels}: take the mean of the channels, or repeat one"
        )
    return waveforms.astype(jnp.float32)


def hann_window(size: int) -> Float[np.ndarray, " size"]:
    """Return the periodic Hann window, sin²(π n / size)."""
    return np.sin(np.pi * np.arange(size) / size) ** 2


def stft(
    waveforms: Waveforms,
    n_fft: int,
    hop: int,
    *,
    window: Float[np.ndarray, " window"] | None = None,
    padding: int | None = None,
    pad_mode: PadMode = "reflect",
) -> Complex[Array, "batch frames bins channels"]:
    """Return the short-time Fourier transform, with n_fft // 2 + 1 bins.

    There are 1 + (samples + 2·padding − n_fft) // hop frames. Samples after the last whole frame
    are left out.

    Args:
        n_fft: samples of a frame.
        hop: samples from one frame's start to the next one's.
        window: up to `n_fft` samples, centred in the frame between zeros; by default the Hann
            window of `n_fft` samples.
        padding: samples put before the first and after the last. The default, n_fft // 2, centres
            frame i on sample i·hop. With (n_fft − hop) // 2, samples / hop frames are centred
            between hops, as HiFi-GAN's are. With 0, frames lie within the waveform.
        pad_mode: "reflect" mirrors the waveform at its first and last sample; "constant" pads with
            zeros.

    Raises:
        ValueError: waveforms are not floats with three axes; `n_fft` or `hop` is below 1; the
            window is longer than a frame; the waveform is shorter than a frame with its padding, or
            too short to be mirrored.
    """
    waveforms, window = as_waveforms(waveforms), _frame_window(window, n_fft, hop)
    padding = n_fft // 2 if padding is None else padding
    samples = waveforms.shape[1]
    least = max(padding + 1 if pad_mode == "reflect" else 1, n_fft - 2 * padding)
    if samples < least:
        raise ValueError(
            f"waveforms have {samples} samples; frames of {n_fft} with {padding} samples of "
            f"padding ({pad_mode}) need {least} or more: take longer ones, or a smaller n_fft"
        )
    if padding:
        waveforms = jnp.pad(waveforms, ((0, 0), (padding, padding), (0, 0)), mode=pad_mode)
    window = jnp.asarray(window, jnp.float32)[:, None]
    return jnp.fft.rfft(cut_frames(waveforms, n_fft, hop) * window, axis=2)


def istft(
    spectrogram: Complex[ArrayLike, "batch frames bins channels"],
    n_fft: int,
    hop: int,
    *,
    window: Float[np.ndarray, " window"] | None = None,
    padding: int | None = None,
    length: int | None = None,
) -> Float[Array, "batch samples channels"]:
    """Return the waveform whose short-time Fourier transform is nearest to a spectrogram.

    It is the exact inverse of `stft` with the same arguments. For any other spectrogram it is the
    least-squares solution (Griffin & Lim 1984, equation 6). Frames are windowed again, added, and
    divided by the sum of the squared windows.

    Args:
        length: samples to return; by default hop·(frames − 1) + n_fft − 2·padding.

    Raises:
        ValueError: `n_fft` or `hop` is below 1; the spectrogram does not have four axes, or
            n_fft // 2 + 1 bins; it is too short for `length`; or the windows leave a sample
            uncovered.
    """
    window = _frame_window(window, n_fft, hop)
    padding = n_fft // 2 if padding is None else padding
    shape, bins = np.shape(spectrogram), n_fft // 2 + 1
    if len(shape) != 4 or shape[2] != bins:
        raise ValueError(
            f"the spectrogram has shape {shape}; expected [batch frames {bins} channels] for an "
            f"n_fft of {n_fft}: give the n_fft of its stft"
        )
    count = shape[1]
    covered = hop * (count - 1) + n_fft - padding
    end = covered - padding if length is None else length
    if not 0 < end <= covered:
        raise ValueError(
            f"{count} frames of {n_fft} samples with hops of {hop} end {covered} samples after the "
            f"start; {end} samples are wanted: give a length between 1 and {covered}"
        )
    kept = slice(padding, padding + end)
    squares = np.broadcast_to((window**2)[:, None], (1, count, n_fft, 1))
    overlap = np.asarray(_overlap_add(squares, hop, np))[:, kept]
    if overlap.min() < LEAST_OVERLAP:
        raise ValueError(
            f"windows of {np.count_nonzero(window)} samples with hops of {hop} leave sample "
            f"{int(overlap.argmin())} uncovered: take smaller hops, or more padding"
        )
    frames = jnp.fft.irfft(spectrogram, n_fft, axis=2) * jnp.asarray(window, jnp.float32)[:, None]
    return _overlap_add(frames, hop, jnp)[:, kept] / jnp.asarray(overlap, jnp.float32)


def _frame_window(window: np.ndarray | None, n_fft: int, hop: int) -> Float[np.ndarray, " n_fft"]:
    """Return the window between zeros, in float64."""
    if n_fft < 1 or hop < 1:
        raise ValueError(f"n_fft and hop are 1 or more samples; got n_fft={n_fft} and hop={hop}")
    window = hann_window(n_fft) if window is None else np.asarray(window, np.float64)
    missing = n_fft - len(window)
    if missing < 0:
        raise ValueError(
            f"the window has {len(window)} samples and a frame n_fft = {n_fft}: take a longer frame"
        )
    return np.pad(window, (missing // 2, missing - missing // 2))


def cut_frames(
    waveforms: Float[Array, "batch samples channels"], n_fft: int, hop: int
) -> Float[Array, "batch frames n_fft channels"]:
    """Cut into frames, as blocks of `hop` samples beside the blocks that follow.

    Slices of blocks have cheaper derivatives than a gather of samples.
    """
    batch, samples, channels = waveforms.shape
    count, parts = 1 + (samples - n_fft) // hop, -(-n_fft // hop)
    whole = (count + parts - 1) * hop
    waveforms = jnp.pad(waveforms, ((0, 0), (0, max(whole - samples, 0)), (0, 0)))[:, :whole]
    blocks = waveforms.reshape(batch, count + parts - 1, hop, channels)
    return jnp.concatenate([blocks[:, i : i + count] for i in range(parts)], axis=2)[:, :, :n_fft]


def _overlap_add(frames: ArrayLike, hop: int, xp) -> ArrayLike:
    """Add frames at their places, the transpose of `cut_frames`; `xp` is numpy or jax.numpy."""
    batch, count, n_fft, channels = frames.shape
    parts = -(-n_fft // hop)
    frames = xp.pad(frames, ((0, 0), (0, 0), (0, parts * hop - n_fft), (0, 0)))
    blocks = frames.reshape(batch, count, parts, hop, channels)
    added = sum(
        xp.pad(blocks[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0), (0, 0))) for i in range(parts)
    )
    added = added.reshape(batch, (count + parts - 1) * hop, channels)
    return added[:, : hop * (count - 1) + n_fft]
