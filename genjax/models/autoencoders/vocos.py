"""Vocos, a vocoder: from log-mel spectrograms to waveforms through the inverse Fourier transform.

Siuzdak 2023, "Vocos: closing the gap between time-domain and Fourier-based neural vocoders",
section 3. ConvNeXt blocks (Liu et al. 2022) keep the rate of frames; only the inverse transform
returns to samples.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax import audio
from genjax.nn import Dense, constrain, scanned
from genjax.nn.waveform import WaveConv

Dtype = Any
TAPS = 7  # of the convolutions over frames
# The published initial values: N(0, 0.02²), cut off at two deviations.
small = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """A ConvNeXt block over frames: a convolution of each channel, then a network of each frame.

    Attributes:
        mlp_width: number of inner channels of the network of each frame.
        scale: initial value of the output's scale, one for each channel.
    """

    mlp_width: int
    scale: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames channels"]
    ) -> tuple[Float[Array, "batch frames channels"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x.shape[-1]
        kernel = self.param("kernel", small, (TAPS, width), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        padded = jnp.pad(x, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
        # XLA's CPU backend has no fast convolution of single channels, so add up the taps.
        taps = jnp.asarray(kernel, self.dtype)
        h = sum(padded[:, i : i + x.shape[1]] * taps[i] for i in range(TAPS))
        h = layer_norm(self, "norm")(h + jnp.asarray(bias, self.dtype))
        h = Dense(self.mlp_width, kernel_init=small, name="mlp_in", **types)(h.astype(self.dtype))
        h = nn.gelu(h, approximate=False)
        h = Dense(width, kernel_init=small, name="mlp_out", **types)(h)
        constant = nn.initializers.constant(self.scale)
        scale = self.param("scale", constant, (width,), self.param_dtype)
        return constrain(x + jnp.asarray(scale, self.dtype) * h, ("data", "fsdp")), None


def layer_norm(module: nn.Module, name: str) -> nn.LayerNorm:
    """Return a layer norm in float32, of the module's parameter type."""
    return nn.LayerNorm(1e-6, jnp.float32, module.param_dtype, name=name)


class Backbone(nn.Module):
    """Frames to frames: a convolution, ConvNeXt blocks, and a layer norm at either end of them."""

    width: int
    mlp_width: int
    depth: int
    unroll: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames channels"]
    ) -> Float[Array, "batch frames width"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = WaveConv(self.width, TAPS, weight_norm=False, name="embedding", **types)(x)
        x = layer_norm(self, "norm_in")(x).astype(self.dtype)
        blocks = scanned(Block, self.depth, min(self.unroll, self.depth))
        x, _ = blocks(self.mlp_width, 1 / self.depth, name="blocks", **types)(x)
        return layer_norm(self, "norm_out")(x)


class Vocos(nn.Module):
    """Waveforms to log-mel spectrograms, which has no parameters, and spectrograms to waveforms.

    The defaults are the sizes of the published weights for 24 kHz, of 13,531,650 parameters. As an
    autoencoder its latents are the spectrogram's frames, so training it on reconstructions trains
    the vocoder alone.

    Attributes:
        sample_rate: in Hz.
        n_fft: samples of a frame.
        hop: samples from one frame's start to the next one's.
        num_mels: number of mel bands.
        width, mlp_width, depth: sizes of the ConvNeXt blocks.
        centered: whether frame i is centred on sample i·hop, so that there is one more frame than
            hops, as in the published weights. Else as many frames as hops, centred between hops.
        channels: number of channels of a waveform.
        latent_mean, latent_deviation: of the log-mel bands. A diffusion model's latents are
            (bands − mean)/deviation.
        unroll: blocks per iteration of the loop over blocks; `depth` runs fastest.
        dtype: type of the blocks' products. Norms, spectra and the head are float32.
    """

    sample_rate: int = 24_000
    n_fft: int = 1024
    hop: int = 256
    num_mels: int = 100
    width: int = 512
    mlp_width: int = 1536
    depth: int = 8
    centered: bool = True
    channels: int = 1
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    unroll: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return self.hop

    @property
    def latent_channels(self) -> int:
        return self.num_mels * self.channels

    @property
    def encoder_margin(self) -> int:
        """Number of hops on each side of a frame whose samples its bands depend on."""
        return math.ceil(self.n_fft / self.hop / 2)

    @property
    def decoder_margin(self) -> int:
        """Number of frames on each side of a hop that its samples depend on."""
        return (self.depth + 1) * (TAPS // 2) + 2 * self.encoder_margin

    @property
    def end_frames(self) -> int:
        """Number of frames after the last hop: one if frames are centred on the hops' starts."""
        return int(self.centered)

    @property
    def padding(self) -> int:
        return (self.n_fft if self.centered else self.n_fft - self.hop) // 2

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.backbone = Backbone(self.width, self.mlp_width, self.depth, self.unroll, **types)
        bins = (self.n_fft // 2 + 1) * self.channels
        self.head = Dense(2 * bins, kernel_init=small, param_dtype=self.param_dtype)

    def encode(
        self, waveform: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch frames latent_channels"]:
        """Return the logarithms of mel bands of magnitudes, at least ln 1e-7.

        The bands are those of torchaudio: triangles of height 1, of equal width on the HTK scale.

        Raises:
            ValueError: waveforms are not floats `[batch samples channels]` of `channels`, or are
                too short for a frame.
        """
        waveform = audio.as_waveforms(waveform, self.channels)
        filters = audio.mel_filters(
            self.sample_rate, self.n_fft, self.num_mels, scale=audio.HTK, unit_area=False
        )
        bands = audio.log_mel_spectrogram(
            waveform, filters, self.hop, padding=self.padding, clamp=1e-7
        )
        return bands.reshape(*bands.shape[:2], -1)

    def decode(
        self, bands: Float[Array, "batch frames latent_channels"]
    ) -> Float[Array, "batch samples channels"]:
        """Return waveforms of log-mel spectrograms, in float32 and not clipped to [−1, 1].

        The head predicts the logarithm of each bin's magnitude, at most ln 100, and its phase.
        """
        coefficients = self.head(self.backbone(bands))
        shape = (*bands.shape[:2], 2, self.n_fft // 2 + 1, self.channels)
        log_magnitude, phase = jnp.moveaxis(coefficients.reshape(shape), 2, 0)
        magnitude = jnp.exp(jnp.minimum(log_magnitude, math.log(100.0)))
        spectrum = magnitude * jnp.exp(1j * phase)
        return audio.istft(spectrum, self.n_fft, self.hop, padding=self.padding)

    def __call__(
        self, waveform: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch out_samples channels"]:
        return self.decode(self.encode(waveform))
