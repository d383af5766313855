"""DAC, a codec of sound: a convolutional autoencoder whose latents are residual codes.

Kumar et al. 2023, "High-fidelity audio compression with improved RVQGAN", section 3 and appendix A.
It follows SoundStream (Zeghidour et al. 2021) and EnCodec (Défossez et al. 2022), with Snake
activations, factorized codes and no recurrent layers.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.audio import as_waveforms
from genjax.models.autoencoders.residual_codec import ResidualCodec
from genjax.nn import constrain
from genjax.nn.quantizers import FactorizedResidualQuantizer
from genjax.nn.waveform import Snake, WaveConv, WaveConvTranspose

Dtype = Any
DILATIONS = (1, 3, 9)  # of a level's residual units


class ResidualUnit(nn.Module):
    """Add a dilated convolution over 7 samples and one over single samples, after Snakes."""

    dilation: int
    weight_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch samples channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(WaveConv, x.shape[-1], weight_norm=self.weight_norm, **types)
        h = conv(7, dilation=self.dilation, name="conv1")(Snake(**types, name="snake1")(x))
        h = conv(1, name="conv2")(Snake(**types, name="snake2")(h))
        return constrain(x + h, ("data", "fsdp"))


class Encoder(nn.Module):
    """Double the channels at each stride, from `width`, then map to `features`."""

    features: int
    width: int
    strides: Sequence[int]
    weight_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch frames features"]:
        common = dict(weight_norm=self.weight_norm, dtype=self.dtype, param_dtype=self.param_dtype)
        snake = functools.partial(Snake, self.dtype, self.param_dtype)
        x = WaveConv(self.width, 7, **common, name="conv_in")(x)
        for i, stride in enumerate(self.strides):
            for j, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, **common, name=f"block{i}_unit{j}")(x)
            x = snake(name=f"block{i}_snake")(x)
            width = self.width * 2 ** (i + 1)
            x = WaveConv(width, 2 * stride, stride, **common, name=f"block{i}_conv")(x)
        return WaveConv(self.features, 3, **common, name="conv_out")(snake(name="snake_out")(x))


class Decoder(nn.Module):
    """Halve the channels at each stride, from `width`, then map to a waveform in (−1, 1)."""

    channels: int
    width: int
    strides: Sequence[int]
    weight_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames features"]
    ) -> Float[Array, "batch samples channels"]:
        common = dict(weight_norm=self.weight_norm, dtype=self.dtype, param_dtype=self.param_dtype)
        snake = functools.partial(Snake, self.dtype, self.param_dtype)
        x = WaveConv(self.width, 7, **common, name="conv_in")(x)
        for i, stride in enumerate(self.strides):
            x = snake(name=f"block{i}_snake")(x)
            width = self.width // 2 ** (i + 1)
            x = WaveConvTranspose(width, stride, **common, name=f"block{i}_conv")(x)
            for j, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, **common, name=f"block{i}_unit{j}")(x)
        x = WaveConv(self.channels, 7, **common, name="conv_out")(snake(name="snake_out")(x))
        return jnp.tanh(x.astype(jnp.float32))


class DAC(ResidualCodec):
    """A codec from waveforms to a few codes for each frame, and back.

    The number of samples is a multiple of `factor`; a frame stands for `factor` samples.
    `genjax.nn.windows.apply_windows` with the margins below codes a long sound in windows, exactly.

    Attributes:
        quantizer: a quantizer of latents `[batch frames features]`, of `genjax.nn.quantizers`.
        width: number of channels of the encoder's first convolution.
        decoder_width: number of channels of the decoder's first convolution.
        strides: of the encoder. The decoder reverses them. With an odd stride, as in the published
            codecs of 16 and 24 kHz, the decoder returns a few samples fewer than `factor` for each
            frame, so it cannot decode in windows.
        channels: number of channels of a waveform.
        sample_rate: samples per second, in Hz; only the bitrate depends on it.
        weight_norm: whether convolutions have weight norm. Published weights have it multiplied
            out.
        latent_mean, latent_deviation: one value for all features, or one each. A diffusion model's
            latents are (latents − mean)/deviation, of latents before quantization.
        dtype: type of the convolutions. Quantization is always float32.
    """

    quantizer: nn.Module
    width: int = 64
    decoder_width: int = 1536
    strides: Sequence[int] = (2, 4, 8, 8)
    channels: int = 1
    sample_rate: int = 44_100
    weight_norm: bool = True
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def encoder_margin(self) -> int:
        """Number of frames on each side of a latent frame whose samples its latents depend on."""
        reach = 1  # in frames of the level; the last convolution has 3 taps
        for stride in reversed(self.strides):
            reach = reach * stride + math.ceil(stride / 2) + 3 * sum(DILATIONS)
        return math.ceil((reach + 3) / self.factor)

    @property
    def decoder_margin(self) -> int:
        """Number of latent frames on each side of a frame that its samples depend on."""
        reach = 3  # in samples of the level; the last convolution has 7 taps
        for stride in self.strides:
            reach = math.ceil((reach + 3 * sum(DILATIONS) + math.ceil(stride / 2)) / stride)
        return reach + 3

    def setup(self):
        common = dict(weight_norm=self.weight_norm, dtype=self.dtype, param_dtype=self.param_dtype)
        self.encoder = Encoder(self.latent_channels, self.width, self.strides, **common)
        self.decoder = Decoder(
            self.channels, self.decoder_width, tuple(self.strides)[::-1], **common
        )

    def encode(
        self, waveform: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch frames features"]:
        """Return the latents before quantization, in float32.

        Raises:
            ValueError: waveforms are not floats of `channels`, or their number of samples is no
                multiple of `factor`.
        """
        waveform = as_waveforms(waveform, self.channels)
        if waveform.shape[1] % self.factor:
            raise ValueError(
                f"a waveform has {waveform.shape[1]} samples; pad it to a multiple of {self.factor}"
            )
        return self.encoder(waveform).astype(jnp.float32)


DAC_44KHZ = functools.partial(DAC, FactorizedResidualQuantizer(9, 1024, 1024))
"""The published codec of 44.1 kHz: 86.1 frames of 9 codes of 10 bits per second, 7.75 kb/s."""
