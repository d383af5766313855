"""The autoencoder of VQGAN (Esser et al. 2021, "Taming transformers for high-resolution image synthesis", appendix A, table 7)
and the tokenizer of LlamaGen (Sun et al. 2024, "Autoregressive model beats diffusion", section 3.1).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.autoencoders.autoencoder_kl import Decoder, Encoder, check_size, convolution
from genjax.nn.quantizers import Quantized, VectorQuantizer

Dtype = Any


class VQModel(nn.Module):
    """Images to a map of codes at a fraction of their side, and codes to images.

    Images of any sides not under `factor` are encoded, to height//factor × width//factor codes.

    Attributes:
        quantizer: of latents `[batch rows columns latent_channels]`: one of `genjax.nn.quantizers`.
        encoder_channels: what the encoder ends with and the decoder begins with, before and after 1×1 convolutions from and to
            the quantizer's features.
        widths: channels of the levels, from the images' side down.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention after each block; 0 is the images' side.
        mid_attention: whether there is self-attention at the codes' side.
        groups: of group norm; divides every width.
        image_channels: of the decoded images; the encoder takes any number.
        latent_mean: with `latent_deviation`, what a diffusion model's latents (those before quantization) are
            standardized by: (latents − mean)/deviation. One for all channels or one each.
        dtype: type of the convolutions and products; norms, softmax and quantization are float32 always.
    """

    quantizer: nn.Module
    encoder_channels: int
    widths: Sequence[int]
    blocks: int = 2
    attention_levels: Sequence[int] = ()
    mid_attention: bool = True
    groups: int = 32
    image_channels: int = 3
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    @property
    def latent_channels(self) -> int:
        return self.quantizer.features

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        levels = dict(
            widths=self.widths,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            mid_attention=self.mid_attention,
            groups=self.groups,
            **types,
        )
        self.encoder = Encoder(self.encoder_channels, **levels)
        self.decoder = Decoder(self.image_channels, **levels)
        self.quant_conv = convolution(self.latent_channels, 1, **types)
        self.post_quant_conv = convolution(self.encoder_channels, 1, **types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns latent_channels"]:
        """Latents before quantization, in float32.

        Raises:
            ValueError: a side is less than `factor`.
        """
        check_size(images, self.factor)
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def quantize(
        self, latents: Float[Array, "batch rows columns latent_channels"], train: bool = False
    ) -> Quantized:
        """Codes, their indices and losses. `train` and its rng streams are the quantizer's."""
        return self.quantizer(latents, train)

    def decode(
        self, latents: Float[Array, "batch rows columns latent_channels"]
    ) -> Float[Array, "batch height width image_channels"]:
        """Images of quantized latents, in float32, not clipped to [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def decode_indices(
        self, indices: Int[Array, "batch rows columns *levels"]
    ) -> Float[Array, "batch height width image_channels"]:
        """Images of codes, given by their indices."""
        return self.decode(self.quantizer.lookup(indices))

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch rows columns image_channels"]:
        return self.decode(self.quantize(self.encode(images), train).latents)


_LEVELS_16 = dict(encoder_channels=256, widths=(128, 128, 256, 256, 512), attention_levels=(4,))
_LEVELS_8 = dict(encoder_channels=256, widths=(128, 256, 256, 512), attention_levels=(3,))
# The 16384 codes of 256 features of Esser et al.
VQGAN_F16 = functools.partial(VQModel, VectorQuantizer(16384, 256), **_LEVELS_16)
# The codes of 8 features and unit length of Sun et al., table 1.
_LLAMAGEN = VectorQuantizer(16384, 8, normalize=True)
LlamaGen_F16 = functools.partial(VQModel, _LLAMAGEN, **_LEVELS_16)
LlamaGen_F8 = functools.partial(VQModel, _LLAMAGEN, **_LEVELS_8)
