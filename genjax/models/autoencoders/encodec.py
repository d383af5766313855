"""EnCodec, a codec of sound: causal convolutions and LSTMs around residual codes.

Défossez et al. 2022, "High fidelity neural audio compression", section 3.1. Encoder and decoder are
SEANet's (Tagliasacchi et al. 2020), as in SoundStream (Zeghidour et al. 2021).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.audio import as_waveforms
from genjax.models.autoencoders.residual_codec import ResidualCodec
from genjax.nn import constrain
from genjax.nn.quantizers import ResidualVectorQuantizer
from genjax.nn.waveform import WaveConv, WaveConvTranspose

Dtype = Any
KERNEL = 7  # taps of the first and the last convolution of either network
LEAST_FRAMES = KERNEL  # a reflection at the start needs as many


class CausalConv(nn.Module):
    """Convolve over the samples so far; a reflection stands before the first sample."""

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch out_samples features"]:
        before = (self.kernel_size - 1) * self.dilation + 1 - self.stride
        x = jnp.pad(x, ((0, 0), (before, 0), (0, 0)), mode="reflect")
        sizes = self.features, self.kernel_size, self.stride, self.dilation
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return WaveConv(*sizes, padding=0, name="conv", **types)(x)


class ResidualUnit(nn.Module):
    """Add a convolution over 3 samples and one over single samples to a mixture of channels."""

    dilation: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch samples channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv, width = functools.partial(CausalConv, **types), x.shape[-1]
        h = conv(width // 2, 3, dilation=self.dilation, name="conv1")(nn.elu(x))
        h = conv(width, 1, name="conv2")(nn.elu(h))
        return constrain(conv(width, 1, name="shortcut")(x) + h, ("data", "fsdp"))


class LSTM(nn.Module):
    """Layers of long short-term memory over time, added to their input, in float32.

    Hochreiter & Schmidhuber 1997, with forget gates. As in PyTorch, gates are in the order input,
    forget, cell, output, and a layer has two biases.
    """

    depth: int = 2
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames features"]
    ) -> Float[Array, "batch frames features"]:
        h, width = x.astype(jnp.float32), x.shape[-1]
        bound = width**-0.5
        uniform = lambda key, *shape: jax.random.uniform(key, *shape, minval=-bound, maxval=bound)
        for i in range(self.depth):
            weight = lambda name, *shape, i=i: jnp.asarray(
                self.param(f"layer_{i}_{name}", uniform, shape, self.param_dtype), jnp.float32
            )
            kernels = [weight(f"{each}_kernel", width, 4 * width) for each in ("input", "hidden")]
            biases = [weight(f"{each}_bias", 4 * width) for each in ("input", "hidden")]
            h = _memory(h @ kernels[0] + biases[0] + biases[1], kernels[1])
        return x + h.astype(x.dtype)


def _memory(
    inputs: Float[Array, "batch frames gates"], kernel: Float[Array, "features gates"]
) -> Float[Array, "batch frames features"]:
    """Return the states of a layer, from what the frames add to its gates."""

    def step(carry: tuple[Array, Array], added: Array) -> tuple[tuple[Array, Array], Array]:
        state, cell = carry
        i, f, g, o = jnp.split(added + state @ kernel, 4, axis=-1)
        cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
        state = nn.sigmoid(o) * jnp.tanh(cell)
        return (state, cell), state

    zeros = jnp.zeros((len(inputs), len(kernel)), inputs.dtype)
    _, states = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1))
    return states.swapaxes(0, 1)


class Encoder(nn.Module):
    """Double the channels at each stride, from `width`, then map to `features`."""

    features: int
    width: int
    strides: Sequence[int]
    units: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch frames features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(CausalConv, **types)
        x = conv(self.width, KERNEL, name="conv_in")(x)
        for i, stride in enumerate(self.strides):
            for j in range(self.units):
                x = ResidualUnit(2**j, name=f"block{i}_unit{j}", **types)(x)
            width = self.width * 2 ** (i + 1)
            x = conv(width, 2 * stride, stride, name=f"block{i}_conv")(nn.elu(x))
        x = LSTM(param_dtype=self.param_dtype, name="lstm")(x)
        return conv(self.features, KERNEL, name="conv_out")(nn.elu(x))


class Decoder(nn.Module):
    """Halve the channels at each stride, down to `width`, then map to a waveform."""

    channels: int
    width: int
    strides: Sequence[int]
    units: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames features"]
    ) -> Float[Array, "batch samples channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(CausalConv, **types)
        width = self.width * 2 ** len(self.strides)
        x = conv(width, KERNEL, name="conv_in")(x)
        x = LSTM(param_dtype=self.param_dtype, name="lstm")(x)
        for i, stride in enumerate(self.strides):
            width, length = width // 2, x.shape[1] * stride
            upsample = WaveConvTranspose(width, stride, padding=0, name=f"block{i}_conv", **types)
            x = upsample(nn.elu(x))[:, :length]  # no sample depends on a later frame
            for j in range(self.units):
                x = ResidualUnit(2**j, name=f"block{i}_unit{j}", **types)(x)
        return conv(self.channels, KERNEL, name="conv_out")(nn.elu(x)).astype(jnp.float32)


class EnCodec(ResidualCodec):
    """A causal codec from waveforms to a few codes for each frame, and back.

    The number of samples is a multiple of `factor`, and a sound has `LEAST_FRAMES` frames or more.
    No frame depends on later samples, and no sample on later frames. The LSTMs remember all earlier
    frames, so windows of a sound are not coded as in the whole.

    Attributes:
        quantizer: a quantizer of latents `[batch frames features]`, of `genjax.nn.quantizers`.
        width: number of channels of the encoder's first convolution.
        strides: of the encoder. The decoder reverses them.
        units: residual units of each level, dilated by powers of two.
        channels: number of channels of a waveform.
        sample_rate: samples per second, in Hz; only the bitrate depends on it.
        latent_mean, latent_deviation: as of `DAC`.
        dtype: type of the convolutions. LSTMs and quantization are always float32.
    """

    quantizer: nn.Module
    width: int = 32
    strides: Sequence[int] = (2, 4, 5, 8)
    units: int = 1
    channels: int = 1
    sample_rate: int = 24_000
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        common = self.units, self.dtype, self.param_dtype
        self.encoder = Encoder(self.latent_channels, self.width, self.strides, *common)
        self.decoder = Decoder(self.channels, self.width, tuple(self.strides)[::-1], *common)

    def encode(
        self, waveform: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch frames features"]:
        """Return the latents before quantization, in float32.

        Raises:
            ValueError: waveforms are not floats of `channels`, or their number of samples is no
                multiple of `factor`, or too small.
        """
        waveform = as_waveforms(waveform, self.channels)
        samples, least = waveform.shape[1], LEAST_FRAMES * self.factor
        if samples % self.factor or samples < least:
            raise ValueError(
                f"a waveform has {samples} samples; pad it to a multiple of {self.factor}, at "
                f"least {least}"
            )
        return self.encoder(waveform).astype(jnp.float32)


ENCODEC_24KHZ = functools.partial(EnCodec, ResidualVectorQuantizer(32, 1024, 128))
"""The published codec of 24 kHz: 75 frames of up to 32 codes of 10 bits per second, 24 kb/s."""
