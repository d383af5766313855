"""A variational autoencoder of log-mel spectrograms, with a vocoder back to waveforms.

Liu et al. 2023, "AudioLDM", section 3.2: waveform, spectrogram, latents, spectrogram, waveform.
Here the networks are convolutions over frames with norms of single frames, so a sound is coded
exactly in windows of time.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.audio import as_waveforms
from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.models.autoencoders.vocos import TAPS, Backbone, Vocos
from genjax.nn import Dense
from genjax.nn.waveform import WaveConv, WaveConvTranspose

Dtype = Any


class MelAutoencoder(GaussianAutoencoder):
    """Waveforms to Gaussian latents of their log-mel spectrogram, and back through a vocoder.

    The number of samples is a multiple of `factor`.

    Attributes:
        latent_channels: number of channels of the latents.
        width: number of channels of the networks over frames.
        depth: number of ConvNeXt blocks of the encoder, and of the decoder.
        strides: by which frames are joined to a latent, even numbers.
        vocoder_width, vocoder_depth: sizes of the vocoder.
        sample_rate, n_fft, hop, num_mels, channels: as of `Vocos`.
        mel_mean, mel_deviation: of the log-mel bands. The networks see (bands − mean)/deviation.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        unroll: blocks per iteration of a loop over blocks.
        dtype: type of the blocks' products.
    """

    latent_channels: int = 16
    width: int = 256
    depth: int = 4
    strides: Sequence[int] = (2, 2)
    vocoder_width: int = 512
    vocoder_depth: int = 8
    sample_rate: int = 24_000
    n_fft: int = 1024
    hop: int = 256
    num_mels: int = 100
    channels: int = 1
    mel_mean: float = -5.0
    mel_deviation: float = 4.0
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    unroll: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return self.hop * math.prod(self.strides)

    @property
    def encoder_margin(self) -> int:
        """Number of latent frames on each side of one whose samples its moments depend on."""
        reach = 0  # in frames of the level
        for stride in reversed(self.strides):
            reach = reach * stride + math.ceil(stride / 2)
        reach += (self.depth + 1) * (TAPS // 2) + math.ceil(self.n_fft / self.hop / 2)
        return math.ceil(reach * self.hop / self.factor)

    @property
    def decoder_margin(self) -> int:
        """Number of latent frames on each side of one that its samples depend on."""
        vocoder = (self.vocoder_depth + 1) * (TAPS // 2) + 2 * math.ceil(self.n_fft / self.hop / 2)
        reach = vocoder + (self.depth + 1) * (TAPS // 2)  # in frames
        for stride in self.strides:
            reach = math.ceil((reach + math.ceil(stride / 2)) / stride)
        return reach

    def setup(self):
        if any(stride % 2 for stride in self.strides):
            raise ValueError(f"strides are even numbers; got {self.strides}")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        plain = dict(weight_norm=False, **types)
        backbone = lambda: Backbone(self.width, 3 * self.width, self.depth, self.unroll, **types)
        self.encoder, self.decoder = backbone(), backbone()
        self.downsamplings = [WaveConv(self.width, 2 * s, s, **plain) for s in self.strides]
        self.upsamplings = [WaveConvTranspose(self.width, s, **plain) for s in self.strides[::-1]]
        float32 = dict(param_dtype=self.param_dtype)
        self.moments = Dense(2 * self.latent_channels, **float32)
        self.bands = Dense(self.num_mels * self.channels, **float32)
        self.vocoder = Vocos(
            self.sample_rate,
            self.n_fft,
            self.hop,
            self.num_mels,
            self.vocoder_width,
            3 * self.vocoder_width,
            self.vocoder_depth,
            centered=False,
            channels=self.channels,
            unroll=self.unroll,
            **types,
        )

    def encode(
        self, waveform: Float[Array, "batch samples channels"]
    ) -> tuple[
        Float[Array, "batch frames latent_channels"], Float[Array, "batch frames latent_channels"]
    ]:
        """Return the mean and the log-variance of the latents, in float32.

        Raises:
            ValueError: the number of samples is no multiple of `factor`, or the waveform has other
                channels or integers.
        """
        waveform = as_waveforms(waveform, self.channels)
        if waveform.shape[1] % self.factor:
            raise ValueError(
                f"a waveform has {waveform.shape[1]} samples; pad it to a multiple of {self.factor}"
            )
        x = self.encoder((self.vocoder.encode(waveform) - self.mel_mean) / self.mel_deviation)
        for layer in self.downsamplings:
            x = nn.gelu(layer(x))
        mean, log_variance = jnp.split(self.moments(x.astype(jnp.float32)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode_bands(
        self, latents: Float[Array, "batch frames latent_channels"]
    ) -> Float[Array, "batch mel_frames bands"]:
        """Return the log-mel bands of latents, in float32."""
        x = latents
        for layer in self.upsamplings:
            x = nn.gelu(layer(x))
        return self.bands(self.decoder(x)) * self.mel_deviation + self.mel_mean

    def decode(
        self, latents: Float[Array, "batch frames latent_channels"]
    ) -> Float[Array, "batch samples channels"]:
        """Decode latents to a waveform, in float32 and not clipped to [−1, 1]."""
        return self.vocoder.decode(self.decode_bands(latents))

    def inner_losses(
        self,
        waveform: Float[Array, "batch samples channels"],
        latents: Float[Array, "batch frames latent_channels"],
    ) -> dict[str, Float[Array, ""]]:
        """Return "mel", the mean |decoded bands − bands| in units of `mel_deviation`.

        This loss makes the decoder's output, which the vocoder reads, a spectrogram.
        """
        difference = self.decode_bands(latents) - self.vocoder.encode(waveform)
        return {"mel": jnp.abs(difference / self.mel_deviation).mean()}
