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
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn import constrain

Dtype = Any
DILATIONS = (1, 3, 9)  # of a level's residual units
# U(−1/√fan_in, 1/√fan_in): PyTorch's default, from which the authors trained.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Snake(nn.Module):
    """The activation x + sin²(αx)/β, in float32. Each channel has its logarithms of α and β."""

    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time channels"]
    ) -> Float[Array, "batch time channels"]:
        shape = (x.shape[-1],)
        alpha, beta = (
            jnp.exp(self.param(name, nn.initializers.zeros, shape, self.param_dtype))
            for name in ("alpha", "beta")
        )
        x = x.astype(jnp.float32)
        return x + jnp.square(jnp.sin(alpha * x)) / (beta + 1e-9)


def normalized_kernel(
    module: nn.Module, shape: tuple[int, ...], param_dtype: Dtype
) -> Float[Array, "*shape"]:
    """Return the kernel g·v/‖v‖, whose variables are `kernel`, v, and `gain`, g, in float32.

    The norm is over all axes but the last. At first g = ‖v‖.
    """
    norm = lambda v: jnp.linalg.norm(v.reshape(-1, shape[-1]).astype(jnp.float32), axis=0)
    kernel = module.param("kernel", uniform, shape, param_dtype)
    gain = module.param("gain", lambda key: norm(kernel).astype(param_dtype))
    return kernel.astype(jnp.float32) * (gain / norm(kernel))


class NormalizedConv(nn.Module):
    """A weight-normalized convolution that keeps the number of samples.

    Attributes:
        width: number of taps, an odd number.
        dilation: distance between two taps, in samples.
    """

    features: int
    width: int
    dtype: Dtype
    param_dtype: Dtype
    dilation: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time channels"]
    ) -> Float[Array, "batch time features"]:
        kernel = normalized_kernel(self, (self.width, x.shape[-1], self.features), self.param_dtype)
        sides = self.width // 2 * self.dilation
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1,),
            [(sides, sides)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            x = x + bias.astype(self.dtype)
        return x


def _convolve_pairs(
    x: Float[Array, "batch blocks channels"], kernel: Float[Array, "2 channels features"]
) -> Float[Array, "batch pairs features"]:
    """Return the products of each two neighbours with the kernel, one fewer than blocks."""
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1,), [(0, 0)], dimension_numbers=("NWC", "WIO", "NWC")
    )


class Downsample(nn.Module):
    """A weight-normalized convolution of 2·`stride` taps, at every `stride`-th sample.

    Computed as a convolution of two taps over blocks of `stride` samples.
    """

    features: int
    stride: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time channels"]
    ) -> Float[Array, "batch frames features"]:
        stride, channels = self.stride, x.shape[-1]
        kernel = normalized_kernel(self, (2 * stride, channels, self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        frames = x.shape[1] // stride
        x = jnp.pad(x.astype(self.dtype), [(0, 0), (stride // 2, stride // 2), (0, 0)])
        blocks = x[:, : (frames + 1) * stride].reshape(len(x), frames + 1, stride * channels)
        kernel = kernel.reshape(2, stride * channels, self.features)
        return _convolve_pairs(blocks, kernel) + bias.astype(self.dtype)


class Upsample(nn.Module):
    """The transpose of a convolution like `Downsample`'s, whose kernel this kernel is.

    Computed as a convolution of two taps that gives blocks of `stride` samples.
    """

    features: int
    stride: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames channels"]
    ) -> Float[Array, "batch time features"]:
        stride, channels = self.stride, x.shape[-1]
        kernel = normalized_kernel(self, (2 * stride, self.features, channels), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        # A frame gives its own block the first half of the taps, and the next block the second.
        own, after = rearrange(kernel, "(n s) out c -> n c (s out)", n=2)
        x = jnp.pad(x.astype(self.dtype), [(0, 0), (1, 1), (0, 0)])
        blocks = _convolve_pairs(x, jnp.stack([after, own]))
        x = rearrange(blocks, "b n (s out) -> b (n s) out", s=stride)
        return x[:, stride // 2 : -(stride // 2)] + bias.astype(self.dtype)


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
        h = Snake(self.param_dtype, name="snake1")(x)
        h = NormalizedConv(x.shape[-1], 7, dilation=self.dilation, name="conv1", **types)(h)
        h = Snake(self.param_dtype, name="snake2")(h)
        h = NormalizedConv(x.shape[-1], 1, name="conv2", **types)(h)
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
        x = NormalizedConv(self.widths[0], 7, name="conv_in", **types)(x)
        for level, (width, stride) in enumerate(zip(self.widths[1:], self.strides, strict=True)):
            for i, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, name=f"level_{level}_unit_{i}", **types)(x)
            x = Snake(self.param_dtype, name=f"level_{level}_snake")(x)
            x = Downsample(width, stride, name=f"level_{level}_downsample", **types)(x)
        x = Snake(self.param_dtype, name="snake_out")(x)
        return NormalizedConv(self.out_channels, 3, name="conv_out", **types)(x)


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
        x = NormalizedConv(self.widths[0], 7, name="conv_in", **types)(x)
        for level, (width, stride) in enumerate(zip(self.widths[1:], self.strides, strict=True)):
            x = Snake(self.param_dtype, name=f"level_{level}_snake")(x)
            x = Upsample(width, stride, name=f"level_{level}_upsample", **types)(x)
            for i, dilation in enumerate(DILATIONS):
                x = ResidualUnit(dilation, name=f"level_{level}_unit_{i}", **types)(x)
        x = Snake(self.param_dtype, name="snake_out")(x)
        return NormalizedConv(self.out_channels, 7, use_bias=False, name="conv_out", **types)(x)


class AutoencoderOobleck(nn.Module):
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
        dtype: type of the convolutions. Snake, the kernels' norms and the outputs are float32.
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
            ValueError: there are fewer samples than `factor`.
        """
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

    def __call__(
        self, waveform: Float[Array, "batch samples audio_channels"]
    ) -> Float[Array, "batch decoded_samples audio_channels"]:
        """Return the reconstruction from the latents' mean."""
        return self.decode(self.encode(waveform)[0])
