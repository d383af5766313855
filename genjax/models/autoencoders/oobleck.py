"""Oobleck, Stable Audio Open's autoencoder: latents of 64 channels for 2048 stereo samples each.

Evans et al. 2024, "Stable Audio Open", section 3.1. A convolutional network over waveforms, with
Snake activations (Ziyin et al. 2020, "Neural networks fail to learn periodic functions and how to
fix it") and weight normalization. Every output depends on a few latents around it, so a sound is
encoded and decoded in overlapping windows exactly, by `genjax.nn.windows.apply_windows`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.audio import as_waveforms
from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import constrain
from genjax.nn.waveform import SnakeBeta, WaveConv, WaveConvTranspose

Dtype = Any
DILATIONS = (1, 3, 9)  # of a level's residual units


def _snake(module: nn.Module, name: str) -> SnakeBeta:
    """Return an activation in float32, also between convolutions of another type."""
    return SnakeBeta(param_dtype=module.param_dtype, name=name)


class ResidualUnit(nn.Module):
    """Snake and a convolution of 7 taps, then Snake and one of 1 tap, added to the input."""

    dilation: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time channels"]
    ) -> Float[Array, "batch time channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = _snake(self, "snake1")(x)
        h = WaveConv(x.shape[-1], 7, dilation=self.dilation, name="conv1", **types)(h)
        h = _snake(self, "snake2")(h)
        h = WaveConv(x.shape[-1], 1, name="conv2", **types)(h)
        return constrain(x + h, ("data", "fsdp"))


class Encoder(nn.Module):
    """The encoder of `AutoencoderOobleck`. Level 0 has the waveform's rate."""

    out_channels: int
    widths: Sequence[int]
    strides: Sequence[int]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time channels"]
    ) -> Float[Array, "batch frames out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = WaveConv(self.widths[0], 7, name="conv_in", **types)(x)
        for level, (width, stride) in enumerate(zip(self.widths[1:], self.strides, strict=True)):
            for i, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, name=f"level_{level}_unit_{i}", **types)(x)
            x = _snake(self, f"level_{level}_snake")(x)
            x = WaveConv(width, 2 * stride, stride, name=f"level_{level}_downsample", **types)(x)
        x = _snake(self, "snake_out")(x)
        return WaveConv(self.out_channels, 3, name="conv_out", **types)(x)


class Decoder(nn.Module):
    """The decoder of `AutoencoderOobleck`. Level 0 has the latents' rate."""

    out_channels: int
    widths: Sequence[int]
    strides: Sequence[int]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames channels"]
    ) -> Float[Array, "batch time out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = WaveConv(self.widths[0], 7, name="conv_in", **types)(x)
        for level, (width, stride) in enumerate(zip(self.widths[1:], self.strides, strict=True)):
            x = _snake(self, f"level_{level}_snake")(x)
            x = WaveConvTranspose(width, stride, name=f"level_{level}_upsample", **types)(x)
            for i, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, name=f"level_{level}_unit_{i}", **types)(x)
        x = _snake(self, "snake_out")(x)
        return WaveConv(self.out_channels, 7, use_bias=False, name="conv_out", **types)(x)


class AutoencoderOobleck(GaussianAutoencoder):
    """Stable Audio Open's autoencoder, whose defaults are the sizes of the published weights.

    Attributes:
        latent_channels: number of channels of the latents.
        width, decoder_width: number of channels at the waveform's rate, in encoder and decoder.
        multiples: number of channels after each stride of the encoder, in units of the width. The
            decoder's are the same in reverse.
        strides: of the encoder, even numbers. The decoder's are the same in reverse.
        audio_channels: number of channels of the waveforms: 1 for mono, 2 for stereo.
        sample_rate: in Hz.
        latent_mean, latent_deviation: one value for each latent channel, or one for all. A
            diffusion model's latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Snake and the outputs are float32.
    """

    latent_channels: int = 64
    width: int = 128
    decoder_width: int = 128
    multiples: Sequence[int] = (1, 2, 4, 8, 16)
    strides: Sequence[int] = (2, 4, 4, 8, 8)
    audio_channels: int = 2
    sample_rate: int = 44_100
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Number of samples per latent frame."""
        return math.prod(self.strides)

    @property
    def encoder_margin(self) -> int:
        """Number of frames on each side of a latent frame whose samples its moments depend on."""
        reach = 1  # in frames of the level; the last convolution has 3 taps
        for stride in reversed(self.strides):
            reach = reach * stride + stride // 2 + 3 * sum(DILATIONS)
        return math.ceil((reach + 3) / self.factor)

    @property
    def decoder_margin(self) -> int:
        """Number of latent frames on each side of a frame that its samples depend on."""
        reach = 3  # in samples of the level; the last convolution has 7 taps
        for stride in self.strides:
            reach = math.ceil((reach + 3 * sum(DILATIONS) + stride // 2) / stride)
        return reach + 3

    def setup(self):
        if len(self.multiples) != len(self.strides) or any(s % 2 for s in self.strides):
            raise ValueError(
                f"strides are even numbers, one for each of multiples={self.multiples}; got "
                f"{self.strides}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        widths = [self.width * multiple for multiple in (1, *self.multiples)]
        self.encoder = Encoder(2 * self.latent_channels, widths, self.strides, **types)
        widths = [self.decoder_width * multiple for multiple in (1, *self.multiples)]
        self.decoder = Decoder(self.audio_channels, widths[::-1], self.strides[::-1], **types)

    def encode(
        self, waveform: Float[Array, "batch samples audio_channels"]
    ) -> tuple[
        Float[Array, "batch frames latent_channels"], Float[Array, "batch frames latent_channels"]
    ]:
        """Return the mean and the log-variance of the latents, in float32.

        There are samples//`factor` frames. The standard deviation is softplus(output) + 1e-4.

        Raises:
            ValueError: waveforms are not floats of `audio_channels`, or have fewer samples than
                `factor`.
        """
        waveform = as_waveforms(waveform, self.audio_channels)
        if waveform.shape[1] < self.factor:
            raise ValueError(
                f"a waveform of {waveform.shape[1]} samples has no latents at {self.factor} "
                f"samples per frame; give {self.factor} samples or more"
            )
        mean, scale = jnp.split(self.encoder(waveform).astype(jnp.float32), 2, axis=-1)
        return mean, 2 * jnp.log(nn.softplus(scale) + 1e-4)

    def decode(
        self, latents: Float[Array, "batch frames latent_channels"]
    ) -> Float[Array, "batch samples audio_channels"]:
        """Decode latents to a waveform, in float32 and not clipped to [−1, 1]."""
        return self.decoder(latents).astype(jnp.float32)
