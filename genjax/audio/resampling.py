"""Resampling by a windowed sinc."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.audio.spectra import Waveforms, as_waveforms, cut_frames

BLOCK = 32  # output samples that one product of matrices makes
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
    waveforms: Waveforms, sample_rate: int, new_rate: int
) -> Float[Array, "batch new_samples channels"]:
    """Return waveforms at another sample rate, with ⌈samples·new_rate / sample_rate⌉ samples.

    Output sample n is Σₖ x[k]·h(n / new_rate − k / sample_rate) with `sinc_kernel` as h, where x is
    0 outside the waveform. Any two rates take memory in proportion to the longer waveform, and a
    table of filters for new_rate / gcd output samples at most.

    Args:
        sample_rate, new_rate: in Hz, whole numbers.

    Raises:
        ValueError: a rate is not positive, or waveforms are not floats with three axes.
    """
    if min(sample_rate, new_rate) < 1:
        raise ValueError(f"rates of {sample_rate} and {new_rate} Hz; give positive whole numbers")
    waveforms = as_waveforms(waveforms)
    return waveforms if sample_rate == new_rate else _resample(waveforms, sample_rate, new_rate)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resample(
    waveforms: Float[Array, "batch samples channels"], rate: int, new_rate: int
) -> Float[Array, "batch new_samples channels"]:
    batch, samples, channels = waveforms.shape
    divisor = math.gcd(rate, new_rate)
    repeats = -(-BLOCK * divisor // new_rate)  # so that a cycle fills a block
    old, new = repeats * rate // divisor, repeats * new_rate // divisor  # samples of a cycle
    count = -(-samples * new // old)
    cycles = max(1, -(-count // new))
    filters = _block_filters(old, new, min(count, new))
    width = filters.weights.shape[1]
    size = int(filters.starts[-1]) + width  # inputs of a cycle's outputs
    end = (cycles - 1) * old + size
    padding = (0, 0), (filters.before, max(0, end - samples)), (0, 0)
    padded = jnp.pad(waveforms.swapaxes(1, 2).reshape(batch * channels, samples, 1), padding)
    frames = cut_frames(padded[:, :end], size, min(old, size))[..., 0]

    def filtered(block):
        start, weights = block
        part = jax.lax.dynamic_slice_in_dim(frames, start, width, axis=2)
        return jnp.matmul(part, weights, precision="highest")

    blocks = jnp.moveaxis(jax.lax.map(filtered, (filters.starts, filters.weights)), 0, 2)
    outputs = blocks.reshape(batch, channels, cycles, len(filters.starts) * BLOCK)[..., :new]
    flat = outputs.reshape(batch, channels, cycles * outputs.shape[3])
    return flat[..., :count].swapaxes(1, 2)


class BlockFilters(NamedTuple):
    """The filters of a cycle, in blocks of `BLOCK` outputs.

    Attributes:
        before: how many inputs before the cycle the filters reach.
        starts: the first input of each block, counted from the first input of the filters.
        weights: the weight of each input of a block for each of its outputs.
    """

    before: int
    starts: Int[np.ndarray, " blocks"]
    weights: Float[np.ndarray, "blocks inputs outputs"]


def _block_filters(old: int, new: int, count: int) -> BlockFilters:
    """Return the filters of the first `count` outputs of a cycle, where `old` inputs make `new`.

    A block holds only the inputs near its outputs. Over all inputs of a cycle, filters of coprime
    rates would hold rate·new_rate weights.
    """
    before = math.ceil(ZEROS * old / (ROLLOFF * min(old, new))) - 1
    outputs = np.arange(0, max(count, 1), BLOCK)[:, None, None] + np.arange(BLOCK)
    starts = outputs[:, 0, 0] * old // new
    width = -(-(BLOCK - 1) * old // new) + 2 * (before + 1)
    inputs = starts[:, None, None] + np.arange(-before, width - before)[:, None]
    weights = sinc_kernel(outputs / new - inputs / old, old, new)
    return BlockFilters(before, starts, weights.astype(np.float32))
