"""The autoencoder of VQGAN, which is also the tokenizer of LlamaGen and of VAR.

Esser et al. 2021, "Taming transformers for high-resolution image synthesis", appendix A, table 7.
Sun et al. 2024, "Autoregressive model beats diffusion", section 3.1. Tian et al. 2024, "Visual
autoregressive modeling", section 3.2.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.autoencoders.autoencoder_kl import Decoder, Encoder, check_size, convolution
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.quantizers import Quantized, VectorQuantizer

Dtype = Any


class VQModel(nn.Module):
    """A convolutional autoencoder from images to a map of codes, and back to images.

    The sides of an image may be any numbers of at least `factor`. Its map has height//factor ×
    width//factor codes; a `MultiScaleQuantizer` has maps of its own sides instead.

    Attributes:
        quantizer: a quantizer of latents `[batch rows columns latent_channels]`, one of
            `genjax.nn.quantizers` or `genjax.nn.multiscale`.
        encoder_channels: number of channels of the encoder's output and of the decoder's input.
            Convolutions map these to the quantizer's features and back.
        widths: number of channels of each level, from the images' side down.
        blocks: number of residual blocks of a level of the encoder. The decoder has one more.
        attention_levels: levels with self-attention after each block. Level 0 has the images' side.
        mid_attention: whether there is self-attention at the codes' side.
        groups: number of groups of group norm, which divides every width.
        image_channels: number of channels of the decoded images. The encoder takes any number.
        quant_side: side of the kernels of the convolutions before and after the quantizer.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation, of latents before quantization.
        dtype: type of the convolutions and products. Norms, softmax and quantization are always
            float32.
    """

    quantizer: nn.Module
    encoder_channels: int
    widths: Sequence[int]
    blocks: int = 2
    attention_levels: Sequence[int] = ()
    mid_attention: bool = True
    groups: int = 32
    image_channels: int = 3
    quant_side: int = 1
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
        self.quant_conv = convolution(self.latent_channels, self.quant_side, **types)
        self.post_quant_conv = convolution(self.encoder_channels, self.quant_side, **types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns latent_channels"]:
        """Return the latents before quantization, in float32.

        Raises:
            ValueError: a side is less than `factor`.
        """
        check_size(images, self.factor)
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def quantize(
        self, latents: Float[Array, "batch rows columns latent_channels"], train: bool = False
    ) -> Quantized:
        """Return codes, their indices and losses.

        The quantizer defines the meaning of `train` and the rng streams that it needs.
        """
        return self.quantizer(latents, train)

    def decode(
        self, latents: Float[Array, "batch rows columns latent_channels"]
    ) -> Float[Array, "batch height width image_channels"]:
        """Decode quantized latents to images, in float32 and not clipped to [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def decode_indices(
        self, indices: Int[Array, " batch *codes"]
    ) -> Float[Array, "batch height width image_channels"]:
        """Decode indices of codes to images, in float32 and not clipped to [−1, 1]."""
        return self.decode(self.quantizer.lookup(indices))

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch rows columns image_channels"]:
        return self.decode(self.quantize(self.encode(images), train).latents)


_LEVELS_16 = dict(encoder_channels=256, widths=(128, 128, 256, 256, 512), attention_levels=(4,))
_LEVELS_8 = dict(encoder_channels=256, widths=(128, 256, 256, 512), attention_levels=(3,))
# Esser et al. use 16384 codes of 256 features.
VQGAN_F16 = functools.partial(VQModel, VectorQuantizer(16384, 256), **_LEVELS_16)
# Sun et al. use codes of 8 features and unit length (table 1).
_LLAMAGEN = VectorQuantizer(16384, 8, normalize=True)
LlamaGen_F16 = functools.partial(VQModel, _LLAMAGEN, **_LEVELS_16)
LlamaGen_F8 = functools.partial(VQModel, _LLAMAGEN, **_LEVELS_8)


def VAR_F16(sides: Sequence[int], **options: Any) -> VQModel:
    """Make the tokenizer of VAR, of 4096 codes of 32 features, for maps of these sides."""
    levels = dict(encoder_channels=32, widths=(160, 160, 320, 320, 640), attention_levels=(4,))
    quantizer = MultiScaleQuantizer(4096, 32, tuple(sides))
    return VQModel(quantizer, **levels, quant_side=3, **options)
