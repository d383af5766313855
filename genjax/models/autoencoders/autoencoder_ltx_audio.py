"""LTX-2's autoencoder of sound: log-mel spectrograms to 128 numbers for each 4 frames.

HaCohen et al. 2026, "LTX-2: efficient joint audio-visual foundation model". Convolutions over time
and mel bins see no later frame. The first frame has a latent frame of its own, so 1 + 4n frames
have 1 + n latent frames.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import constrain
from genjax.nn.causal import continues, prepend_context

Dtype = Any
Spectrogram = Float[Array, "batch frames bins channels"]
Changed = Float[Array, "batch new_frames new_bins new_channels"]


def _activated(x: Spectrogram) -> Spectrogram:
    """Return SiLU of x/√(mean square over channels), at each bin of each frame, in float32."""
    x = x.astype(jnp.float32)
    return nn.silu(x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))


class Conv(nn.Module):
    """A convolution of odd side, with zeros before the first frame and on either side of the bins.

    Attributes:
        stride: 1, or 2, which halves frames and bins. Then zeros follow the last bin alone.
    """

    features: int
    dtype: Dtype
    param_dtype: Dtype
    side: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Spectrogram) -> Changed:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        margin = self.side // 2
        # The last output of a chunk took `stride` new frames, so the next one overlaps it by fewer.
        known = self.stride - 1 if continues(self) else 0
        x = prepend_context(self, x, jnp.zeros_like(x, shape=(len(x), 2 * margin, *x.shape[2:])))
        bins = (margin, margin) if self.stride == 1 else (0, margin)
        x = jax.lax.conv_general_dilated(
            x[:, known:],
            kernel,
            (self.stride, self.stride),
            [(0, 0), bins],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm."""

    features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Spectrogram) -> Float[Array, "batch frames bins features"]:
        sizes = (self.features, self.dtype, self.param_dtype)
        h = Conv(*sizes, name="conv1")(_activated(x))
        h = Conv(*sizes, name="conv2")(_activated(h))
        if x.shape[-1] != self.features:
            x = Conv(*sizes, side=1, name="shortcut")(x)
        return constrain(x + h, ("data", "fsdp"))


class Upsample(nn.Module):
    """Twice the frames and bins; 1 + n frames become 1 + 2n."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Spectrogram) -> Changed:
        conv = Conv(x.shape[-1], self.dtype, self.param_dtype, name="conv")
        starts = not continues(conv)
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv(x)[:, int(starts) :]


class Encoder(nn.Module):
    """The encoder of `AutoencoderLTXAudio`, with fields of the same meaning."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Spectrogram) -> Changed:
        types = self.dtype, self.param_dtype
        x = Conv(self.widths[0], *types, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = ResidualBlock(width, *types, name=f"level_{level}_block_{i}")(x)
            if level < len(self.widths) - 1:
                x = Conv(width, *types, stride=2, name=f"level_{level}_downsample")(x)
        for i in (1, 2):
            x = ResidualBlock(width, *types, name=f"middle_block_{i}")(x)
        return Conv(self.out_channels, *types, name="conv_out")(_activated(x))


class Decoder(nn.Module):
    """The decoder of `AutoencoderLTXAudio`, with fields of the same meaning."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Spectrogram) -> Changed:
        types = self.dtype, self.param_dtype
        x = Conv(self.widths[-1], *types, name="conv_in")(x)
        for i in (1, 2):
            x = ResidualBlock(self.widths[-1], *types, name=f"middle_block_{i}")(x)
        for level in reversed(range(len(self.widths))):
            for i in range(self.blocks + 1):
                x = ResidualBlock(self.widths[level], *types, name=f"level_{level}_block_{i}")(x)
            if level > 0:
                x = Upsample(*types, name=f"level_{level}_upsample")(x)
        return Conv(self.out_channels, *types, name="conv_out")(_activated(x))


class AutoencoderLTXAudio(nn.Module):
    """LTX-2's autoencoder of sound, whose defaults are the published sizes.

    `genjax.nn.causal.apply_chunks` encodes and decodes chunk by chunk: first one frame, then
    multiples of `temporal_factor` frames, or of one latent frame.

    Attributes:
        channels: number of channels of the sound, each with a spectrogram of its own.
        bins: number of mel bins; a multiple of `factor`.
        latent_channels: number of channels of the latents.
        width: number of channels of the first level.
        multipliers: the number of channels of each level, divided by `width`. Each level after the
            first has half the frames and half the bins.
        blocks: number of residual blocks of each level of the encoder. The decoder has one more.
        sample_rate: of the sound, in Hz.
        hop: number of samples between the centres of successive frames.
        latent_mean, latent_deviation: one value for each latent channel and bin, in the order
            (channel, bin) of a token of LTX-2; or one for all. A diffusion model's latents are
            (latents − mean)/deviation.
        dtype: type of the convolutions. Norms and the outputs are always float32.
    """

    channels: int = 2
    bins: int = 64
    latent_channels: int = 8
    width: int = 128
    multipliers: Sequence[int] = (1, 2, 4)
    blocks: int = 2
    sample_rate: int = 16_000
    hop: int = 160
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    encoder_causal: ClassVar[bool] = True
    decoder_causal: ClassVar[bool] = True

    @property
    def factor(self) -> int:
        """Number of bins per latent bin."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_factor(self) -> int:
        """Number of frames per latent frame after the first."""
        return self.factor

    def setup(self):
        if self.bins % self.factor:
            raise ValueError(f"bins={self.bins} is no multiple of {self.factor}")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = tuple(self.width * each for each in self.multipliers), self.blocks
        self.encoder = Encoder(2 * self.latent_channels, *sizes, **types)
        self.decoder = Decoder(self.channels, *sizes, **types)

    def encode(
        self, spectrogram: Float[Array, "batch frames bins channels"]
    ) -> tuple[
        Float[Array, "batch latent_frames latent_bins latent_channels"],
        Float[Array, "batch latent_frames latent_bins latent_channels"],
    ]:
        """Return the mean and the log-variance of the latents, in float32.

        n frames have ⌈n/`temporal_factor`⌉ latent frames. The log-variance is clipped to [−30, 20].

        Args:
            spectrogram: the logarithm of the energy in each mel bin.

        Raises:
            ValueError: there are not `bins` mel bins of `channels` channels.
        """
        if spectrogram.shape[2:] != (self.bins, self.channels):
            raise ValueError(
                f"a spectrogram has {self.bins} bins of {self.channels} channels; got "
                f"{spectrogram.shape[2]} of {spectrogram.shape[3]}"
            )
        mean, log_variance = jnp.split(self.encoder(spectrogram).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(
        self, latents: Float[Array, "batch latent_frames latent_bins latent_channels"]
    ) -> Float[Array, "batch frames bins channels"]:
        """Decode latents to a log-mel spectrogram, in float32."""
        return self.decoder(latents).astype(jnp.float32)

    def __call__(
        self, spectrogram: Float[Array, "batch frames bins channels"]
    ) -> Float[Array, "batch decoded_frames bins channels"]:
        """Return the reconstruction from the latents' mean, of 1 + 4n frames."""
        return self.decode(self.encode(spectrogram)[0])
