"""Discriminators of sound: by periods of its samples, and by its spectra at several resolutions.

Kong et al. 2020, "HiFi-GAN", section 2.3; Défossez et al. 2022, "EnCodec", section 3.4; Kumar et
al. 2023, "DAC", section 3.4. Every part returns its logits and the features of its layers, which
feature matching compares. Logits are no features, as in EnCodec and DAC. HiFi-GAN compares them
too.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from genjax import audio
from genjax.nn.waveform import WaveConv

Dtype = Any
LogitsAndFeatures = tuple[Float[Array, "batch ..."], list[Float[Array, "batch ..."]]]


class PeriodDiscriminator(nn.Module):
    """Judge samples that are `period` apart, by convolutions over time alone (HiFi-GAN).

    The waveform becomes `[batch samples/period period channels]`, mirrored at its end to a whole
    number of periods.

    Attributes:
        widths: numbers of channels. All layers but the last have stride 3.
    """

    period: int
    widths: Sequence[int] = (32, 128, 512, 1024, 1024)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "batch samples channels"]) -> LogitsAndFeatures:
        """Return logits `[batch times period]` in float32, and the features before them."""
        missing = -waveform.shape[1] % self.period
        x = jnp.pad(waveform, ((0, 0), (0, missing), (0, 0)), mode="reflect")
        x = rearrange(x, "b (time period) c -> b time period c", period=self.period)
        conv = functools.partial(WaveConv, dtype=self.dtype, param_dtype=self.param_dtype)
        features, last = [], len(self.widths) - 1
        for i, width in enumerate(self.widths):
            stride = (3, 1) if i < last else (1, 1)
            x = conv(width, (5, 1), stride, padding=(2, 0), name=f"conv_{i}")(x)
            x = nn.leaky_relu(x, 0.1)
            features.append(x)
        logits = conv(1, (3, 1), padding=(1, 0), name="head")(x)
        return logits[..., 0].astype(jnp.float32), features


class SpectrumDiscriminator(nn.Module):
    """Judge the complex spectrum of frames, its real and imaginary part as channels.

    By default the network is EnCodec's. DAC's has five `bands`, dilations of 1 and slope 0.1. DAC's
    program also takes the mean from a sound, scales its peak to 0.8, pads it, and does not divide
    the spectrum by the norm of the window.

    Attributes:
        n_fft: samples of a frame. Frames start a quarter of a frame apart.
        width: number of channels.
        dilations: over time, of the layers that halve the number of bins.
        bands: ends of bands of frequency, as shares of all bins. Each band has layers of its own
            before the logits.
        slope: of the leaky ReLU.
    """

    n_fft: int
    width: int = 32
    dilations: Sequence[int] = (1, 2, 4)
    bands: Sequence[float] = (0.0, 1.0)
    slope: float = 0.2
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "batch samples channels"]) -> LogitsAndFeatures:
        """Return logits `[batch frames bins]` in float32, and the features before them."""
        window = audio.hann_window(self.n_fft)
        spectrum = audio.stft(waveform, self.n_fft, self.n_fft // 4, padding=0)
        spectrum = spectrum / math.sqrt((window**2).sum())
        x = jnp.concatenate([spectrum.real, spectrum.imag], axis=-1)
        ends = [int(share * x.shape[2]) for share in self.bands]
        parts, features = [], []
        for i, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            part, layers = self._layers(x[:, :, start:end], f"band{i}_")
            parts.append(part)
            features += layers
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        head = WaveConv(1, (3, 3), padding=(1, 1), **types, name="head")
        logits = head(jnp.concatenate(parts, axis=2))
        return logits[..., 0].astype(jnp.float32), features

    def _layers(
        self, x: Float[Array, "batch frames bins channels"], prefix: str
    ) -> LogitsAndFeatures:
        conv = functools.partial(
            WaveConv, self.width, dtype=self.dtype, param_dtype=self.param_dtype
        )
        features = []
        layers = [conv((3, 9), padding=(1, 4), name=f"{prefix}conv_0")]
        for i, dilation in enumerate(self.dilations, start=1):
            options = dict(stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4))
            layers.append(conv((3, 9), **options, name=f"{prefix}conv_{i}"))
        layers.append(conv((3, 3), padding=(1, 1), name=f"{prefix}conv_{len(layers)}"))
        for layer in layers:
            x = nn.leaky_relu(layer(x), self.slope)
            features.append(x)
        return x, features


class SoundDiscriminator(nn.Module):
    """All discriminators of sound, one for each period and for each size of frames.

    Attributes:
        periods: in samples, which have few common multiples; () for none.
        n_ffts: samples of a frame; () for none.
        period_widths: as of `PeriodDiscriminator.widths`.
        width, dilations, bands, slope: as of `SpectrumDiscriminator`.
    """

    periods: Sequence[int] = (2, 3, 5, 7, 11)
    n_ffts: Sequence[int] = (2048, 1024, 512)
    period_widths: Sequence[int] = (32, 128, 512, 1024, 1024)
    width: int = 32
    dilations: Sequence[int] = (1, 2, 4)
    bands: Sequence[float] = (0.0, 1.0)
    slope: float = 0.2
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, waveform: Float[Array, "batch samples channels"], *, train: bool = False
    ) -> tuple[list[Float[Array, "batch ..."]], list[list[Float[Array, "batch ..."]]]]:
        """Return the logits of each discriminator, and the features of the layers before them.

        Ignores `train`: the discriminators behave the same in training and evaluation.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        spectra = dict(
            width=self.width, dilations=self.dilations, bands=self.bands, slope=self.slope
        )
        judges = [
            PeriodDiscriminator(period, self.period_widths, **types, name=f"period_{period}")
            for period in self.periods
        ] + [
            SpectrumDiscriminator(n_fft, **spectra, **types, name=f"spectrum_{n_fft}")
            for n_fft in self.n_ffts
        ]
        logits, features = zip(*[judge(waveform) for judge in judges], strict=True)
        return list(logits), list(features)


DAC_BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
