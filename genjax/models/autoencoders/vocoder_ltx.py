"""LTX-2's vocoders: log-mel spectrograms to waveforms.

The first is HiFi-GAN's generator (Kong et al. 2020). In LTX-2.3 it has the activations of BigVGAN
(Lee et al. 2022), and a second one adds what a waveform of a higher sample rate has beyond it.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn import constrain

Dtype = Any
Wave = Float[Array, "batch samples channels"]
Changed = Float[Array, "batch new_samples channels"]
TAPS = 12  # of the filters around an activation


def kaiser_low_pass() -> Float[np.ndarray, " taps"]:
    """Return a low-pass filter at half the Nyquist frequency: a sinc in Kaiser's window, sum 1.

    The transition is .6 of the cutoff frequency on either side (BigVGAN, section 3.2, as released).
    """
    cutoff, half_width, half = 0.25, 0.3, TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * half_width + 7.95  # decibels; above 50
    window = np.kaiser(TAPS, 0.1102 * (attenuation - 8.7))
    taps = window * np.sinc(2 * cutoff * (np.arange(-half, half) + 0.5))
    return taps / taps.sum()


def hann_interpolation(ratio: int) -> Float[np.ndarray, " taps"]:
    """Return the filter of `upsample_waveform`: a sinc of 6 zero crossings in Hann's window."""
    crossings, rolloff = 6, 0.99
    width = math.ceil(crossings / rolloff)
    time = (np.arange(2 * width * ratio + 1) / ratio - width) * rolloff
    window = np.cos(np.clip(time, -crossings, crossings) * np.pi / crossings / 2) ** 2
    return np.sinc(time) * window * rolloff / ratio


def _filter(
    x: Wave,
    taps: Float[Array | np.ndarray, " taps"],
    margins: tuple[int, int],
    cut: tuple[int, int] = (0, 0),
    up: int = 1,
    down: int = 1,
) -> Changed:
    """Repeat the ends `margins` times, insert `up` − 1 zeros, convolve, cut, keep every `down`-th.

    Args:
        cut: how many values of the full convolution are left out before and after the result, less
            than there are taps. Without insertion it counts from the first whole overlap.
    """
    x = jnp.pad(x, ((0, 0), margins, (0, 0)), mode="edge")
    full = len(taps) - 1 if up > 1 else 0
    y = jax.lax.conv_general_dilated(
        x[..., None],
        jnp.asarray(taps, x.dtype)[::-1, None, None, None],
        (down, 1),
        [(full - cut[0], full - cut[1]), (0, 0)],
        lhs_dilation=(up, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y[..., 0]


def upsample_waveform(x: Wave, ratio: int) -> Changed:
    """Return waveforms with `ratio` times the samples, 2 or more, by `hann_interpolation`."""
    taps = ratio * hann_interpolation(ratio)
    margin = (len(taps) - 1) // (2 * ratio)
    return _filter(x, taps, (margin, margin), (2 * margin * ratio, len(taps) - ratio), up=ratio)


class AliasFreeSnake(nn.Module):
    """Double the rate, apply x + sin²(αx)/β with α and β per channel, and halve the rate again.

    So the activation makes no frequencies that alias (BigVGAN, section 3.2). α and β are stored as
    logarithms. The filters are in the collection "constants", since published files hold them.
    """

    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Wave) -> Wave:
        zeros, taps = nn.initializers.zeros, lambda: jnp.asarray(kaiser_low_pass(), jnp.float32)
        alpha, beta = (
            jnp.exp(self.param(name, zeros, x.shape[-1:], self.param_dtype).astype(jnp.float32))
            for name in ("alpha", "beta")
        )
        doubling, halving = (
            self.variable("constants", name, taps).value for name in ("doubling", "halving")
        )
        x, margin = x.astype(jnp.float32), TAPS // 2 - 1
        cut = 3 * margin  # the margins, of twice the rate, and half the filter
        x = _filter(x, 2 * doubling, (margin, margin), (cut, cut), up=2)
        x = x + jnp.square(jnp.sin(alpha * x)) / (beta + 1e-9)
        # Files hold the halving filter in reverse order, as PyTorch's convolutions take it.
        return _filter(x, halving[::-1], (margin, margin + 1), down=2)


class ResidualBlock(nn.Module):
    """Pairs of convolutions, each after an activation; the first of a pair is dilated."""

    kernel_size: int
    dilations: Sequence[int]
    slope: float | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Wave) -> Wave:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for i, dilation in enumerate(self.dilations):
            h = x
            for pair, step in ((1, dilation), (2, 1)):
                h = _activated(h, self.slope, f"activation{pair}_{i}", self.param_dtype)
                conv = nn.Conv(
                    x.shape[-1],
                    (self.kernel_size,),
                    kernel_dilation=(step,),
                    name=f"conv{pair}_{i}",
                    **types,
                )
                h = conv(h)
            x = x + h
        return x


def _activated(x: Wave, slope: float | None, name: str, param_dtype: Dtype) -> Wave:
    """Return the activation of a module's `x`: the leaky ReLU, or without a slope the snake."""
    if slope is None:
        return AliasFreeSnake(param_dtype, name=name)(x)
    return nn.leaky_relu(x, slope)


class VocoderLTX(nn.Module):
    """LTX-2.0's vocoder, whose defaults are the published sizes.

    Attributes:
        channels: number of channels of the sound, each with a spectrogram of its own.
        width: number of features after the first layer; each level halves them.
        strides: how many times each level multiplies the samples.
        kernel_sizes: of each level's upsampling; kernel size less stride is even.
        block_kernel_sizes, dilations: of the blocks whose outputs' mean is a level's output.
        slope: of the leaky ReLUs before 0, except for the last one, whose slope is .01. None for
            `AliasFreeSnake` instead of leaky ReLUs.
        final: how the output is brought into [−1, 1]; None for not at all.
        final_bias: whether the last convolution has a bias.
        sample_rate: of the waveform, in Hz.
        dtype: type of the convolutions. Snakes, their filters and the output are always float32.
    """

    channels: int = 2
    width: int = 1024
    strides: Sequence[int] = (6, 5, 2, 2, 2)
    kernel_sizes: Sequence[int] = (16, 15, 8, 4, 4)
    block_kernel_sizes: Sequence[int] = (3, 7, 11)
    dilations: Sequence[Sequence[int]] = ((1, 3, 5),) * 3
    slope: float | None = 0.1
    final: Literal["tanh", "clamp"] | None = "tanh"
    final_bias: bool = True
    sample_rate: int = 24_000
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)

    @property
    def decoder_margin(self) -> int:
        """Number of frames on each side of a frame that its samples depend on."""
        snake = TAPS // 2 if self.slope is None else 0
        blocks = zip(self.block_kernel_sizes, self.dilations, strict=True)
        block = max(
            sum(size // 2 * (dilation + 1) + 2 * snake for dilation in dilations)
            for size, dilations in blocks
        )
        reach = 3 + snake  # in samples of the level; the last convolution has 7 taps
        for size, stride in reversed([*zip(self.kernel_sizes, self.strides, strict=True)]):
            reach = math.ceil((reach + block + (size - stride) // 2) / stride)
        return reach + 3

    @nn.compact
    def __call__(
        self, spectrogram: Float[Array, "batch frames bins channels"]
    ) -> Float[Array, "batch samples channels"]:
        """Return the waveform, with the product of the strides as samples per frame, in float32.

        Args:
            spectrogram: the logarithm of the energy in each mel bin.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = rearrange(spectrogram, "b t f c -> b t (c f)")
        x = nn.Conv(self.width, (7,), name="conv_in", **types)(x)
        for level in range(len(self.strides)):
            if self.slope is not None:
                x = nn.leaky_relu(x, self.slope)
            x = constrain(self._enlarged(x, level), ("data", "fsdp"))
            sizes = zip(self.block_kernel_sizes, self.dilations, strict=True)
            blocks = [
                ResidualBlock(*size, self.slope, name=f"level_{level}_block_{i}", **types)(x)
                for i, size in enumerate(sizes)
            ]
            x = sum(blocks) / len(blocks)
        last = None if self.slope is None else 0.01
        x = _activated(x, last, "activation_out", self.param_dtype)
        conv = nn.Conv(self.channels, (7,), use_bias=self.final_bias, name="conv_out", **types)
        x = conv(x).astype(jnp.float32)
        if self.final is None:
            return x
        return jnp.tanh(x) if self.final == "tanh" else jnp.clip(x, -1, 1)

    def _enlarged(self, x: Wave, level: int) -> Float[Array, "batch new_samples features"]:
        size, stride = self.kernel_sizes[level], self.strides[level]
        margin = size - 1 - (size - stride) // 2
        return nn.ConvTranspose(
            self.width // 2 ** (level + 1),
            (size,),
            strides=(stride,),
            padding=[(margin, margin)],
            name=f"level_{level}_upsample",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )(x)


class ExtendedVocoderLTX(nn.Module):
    """LTX-2.3's vocoder: one vocoder's waveform, and another's residual at a higher sample rate.

    The other vocoder sees the log-mel spectrogram of the first one's waveform. The transform and
    the mel bins are in the collection "constants", since published files hold them; they are zeros
    until a file is loaded.

    Attributes:
        vocoder: the first vocoder.
        extension: the other one. It has `hop`·ratio samples per frame, for the ratio of both
            sample rates.
        size: samples of a frame of the spectrogram.
        hop: samples between its frames. A frame ends with its hop.
        bins: number of its mel bins.
    """

    vocoder: VocoderLTX
    extension: VocoderLTX
    size: int = 512
    hop: int = 80
    bins: int = 64

    @property
    def channels(self) -> int:
        """The number of channels of the sound."""
        return self.vocoder.channels

    @property
    def sample_rate(self) -> int:
        """The waveform's samples per second."""
        return self.extension.sample_rate

    @property
    def factor(self) -> int:
        """Samples of a frame."""
        return self.vocoder.factor * self.sample_rate // self.vocoder.sample_rate

    @property
    def decoder_margin(self) -> int | None:
        """Number of frames on each side of a frame that its samples depend on.

        None if a frame does not have whole hops, so that windows are not the whole.
        """
        if self.vocoder.factor % self.hop:
            return None
        # The filter of `upsample_waveform` reaches 7 samples far.
        reach = max(7, self.extension.decoder_margin * self.hop + self.size - self.hop)
        return self.vocoder.decoder_margin + math.ceil(reach / self.vocoder.factor)

    @nn.compact
    def __call__(
        self, spectrogram: Float[Array, "batch frames bins channels"]
    ) -> Float[Array, "batch samples channels"]:
        """Return the waveform, clipped to [−1, 1], in float32.

        Args:
            spectrogram: the logarithm of the energy in each mel bin.
        """
        x = self.vocoder(spectrogram)
        ratio = self.sample_rate // self.vocoder.sample_rate
        samples = x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, -samples % self.hop), (0, 0)))
        waveform = self.extension(self._log_mel(x)) + upsample_waveform(x, ratio)
        return jnp.clip(waveform, -1, 1)[:, : ratio * samples]

    def _log_mel(self, x: Wave) -> Float[Array, "batch frames mel_bins channels"]:
        frequencies = self.size // 2 + 1
        transform, mel = (
            self.variable("constants", name, jnp.zeros, shape, jnp.float32).value.astype(x.dtype)
            for name, shape in (
                ("transform_kernel", (self.size, 1, 2 * frequencies)),
                ("mel_kernel", (frequencies, self.bins)),
            )
        )
        parts = jax.lax.conv_general_dilated(
            rearrange(x, "b t c -> (b c) t 1"),
            transform,
            (self.hop,),
            [(self.size - self.hop, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        magnitude = jnp.hypot(*jnp.split(parts, 2, axis=-1))
        log_mel = jnp.log(jnp.maximum(magnitude @ mel, 1e-5))
        return rearrange(log_mel, "(b c) t f -> b t f c", c=x.shape[2])


def extended_vocoder_ltx(**options) -> ExtendedVocoderLTX:
    """Return the vocoder of LTX-2.3 in its published sizes, at 48 kHz."""
    shared = dict(slope=None, final=None, final_bias=False) | options
    vocoder = VocoderLTX(
        width=1536,
        strides=(5, 2, 2, 2, 2, 2),
        kernel_sizes=(11, 4, 4, 4, 4, 4),
        sample_rate=16_000,
        **shared,
    )
    extension = VocoderLTX(
        width=512,
        kernel_sizes=(12, 11, 4, 4, 4),
        sample_rate=48_000,
        **shared,
    )
    return ExtendedVocoderLTX(vocoder, extension)
