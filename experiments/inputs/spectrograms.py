"""The space of spectrograms: what a network sees of a sound in place of its samples."""

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, PyTree
from PIL import Image

from experiments.inputs.spaces import Waveforms
from genjax import audio


@dataclass(frozen=True)
class Spectrograms:
    """Log-mel spectrograms of sound, `[frames bands]`: (log(band + floor) − mean) / deviation.

    Samples become sound by `audio.from_mel_bands`, so no vocoder is trained. Silence stays silent.

    Attributes:
        waveforms: the sound itself.
        n_fft, hop, num_mels: of the spectrogram; a sound has samples / hop frames.
        mean, deviation: of the logarithms, in nepers.
        floor: the magnitude of a band below which sound fades out.
    """

    waveforms: Waveforms
    n_fft: int
    hop: int
    num_mels: int
    mean: float
    deviation: float
    floor: float

    @classmethod
    def from_data(
        cls,
        data: Any,
        *,
        n_fft: int,
        hop: int,
        num_mels: int,
        mean: float,
        deviation: float,
        floor: float,
    ) -> Self:
        """Return the spectrograms of a data set.

        Raises:
            ValueError: its shape has another rank, or does not divide into frames.
        """
        waveforms = Waveforms.from_data(data)
        if waveforms.shape[0] % hop or hop % 2 or n_fft % 2 or n_fft < hop:
            raise ValueError(
                f"config.space.hop is {hop} and n_fft {n_fft}: take even numbers, a hop that "
                f"divides the {waveforms.shape[0]} samples of a sound, and n_fft not below it"
            )
        return cls(waveforms, n_fft, hop, num_mels, mean, deviation, floor)

    @property
    def shape(self) -> tuple[int, int]:
        samples, channels = self.waveforms.shape
        return samples // self.hop, self.num_mels * channels

    @property
    def feature(self) -> str:
        return self.waveforms.feature

    @property
    def sample_rate(self) -> int:
        return self.waveforms.sample_rate

    @property
    def autoencoder(self) -> Self:
        """The spectrogram and its inverse, which lose the phases."""
        return self

    @property
    def filters(self) -> Float[np.ndarray, "bins num_mels"]:
        return audio.mel_filters(self.sample_rate, self.n_fft, self.num_mels)

    @property
    def padding(self) -> int:
        """Samples before the first and after the last, as HiFi-GAN pads."""
        return (self.n_fft - self.hop) // 2

    frozen = abstract_frozen = Waveforms.frozen

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.waveforms.abstract_batch()

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        form = dict(hop=self.hop, padding=self.padding, clamp=0.0)
        logarithm = lambda bands: jnp.log(bands + self.floor)
        sounds = self.waveforms.encode(examples)
        bands = audio.log_mel_spectrogram(sounds, self.filters, **form, log=logarithm)
        return rearrange((bands - self.mean) / self.deviation, "b f m c -> b f (m c)")

    def decode(self, samples: Float[Array, "batch frames bands"], frozen: PyTree = None) -> Array:
        """Return sound of `hop` samples for each frame, however many frames there are."""
        logarithms = rearrange(samples, "b f (m c) -> b f m c", m=self.num_mels)
        bands = jnp.exp(logarithms * self.deviation + self.mean) - self.floor
        form = dict(hop=self.hop, padding=self.padding)
        return audio.from_mel_bands(jnp.maximum(bands, 0), self.filters, **form)

    to_data = staticmethod(Waveforms.to_data)

    def picture(self, examples: np.ndarray, columns: int) -> Image.Image:
        return self.waveforms.picture(examples, columns)
