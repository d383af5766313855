"""The shared part of sound codecs: frames, bits, and the way from codes to a waveform."""

import math

import flax.linen as nn
from jaxtyping import Array, Float, Int

from genjax.nn.quantizers import Quantized


class ResidualCodec(nn.Module):
    """A codec whose latents are residual codes. A child says what encodes and what decodes.

    A child has the fields `quantizer`, `strides` of the encoder, and `sample_rate` in Hz, the
    submodule `decoder`, and the method `encode`.
    """

    @property
    def factor(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)

    @property
    def latent_channels(self) -> int:
        return self.quantizer.features

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.factor

    @property
    def bitrate(self) -> float:
        """Bits per second of the codes of all levels, all of equal length."""
        return self.frame_rate * self.quantizer.num_levels * math.log2(self.quantizer.num_codes)

    def quantize(
        self, latents: Float[Array, "batch frames features"], train: bool = False
    ) -> Quantized:
        """Return codes, their indices `[batch frames levels]` and losses."""
        return self.quantizer(latents, train)

    def decode(
        self, latents: Float[Array, "batch frames features"]
    ) -> Float[Array, "batch samples channels"]:
        """Decode quantized latents to a waveform, in float32."""
        return self.decoder(latents)

    def decode_indices(
        self, indices: Int[Array, "batch frames levels"]
    ) -> Float[Array, "batch samples channels"]:
        """Decode the indices of codes; the first levels alone give a coarser sound."""
        return self.decode(self.quantizer.lookup(indices))

    def __call__(
        self, waveform: Float[Array, "batch samples channels"], train: bool = False
    ) -> Float[Array, "batch samples channels"]:
        return self.decode(self.quantize(self.encode(waveform), train).latents)
