"""A variational autoencoder of two plain transformers, after ViTok (Hansen-Estruch et al. 2025, "Learnings
from scaling visual tokenizers for reconstruction and generation", section 2).

As there: patches are embedded linearly; the encoder ends in one linear layer to twice the latent channels of
each token, mean and log-variance; the decoder begins with one back to its width and ends in one to the pixels
of a patch; encoder and decoder have sizes of their own, since what pays is the decoder's. Ours: pre-norm
blocks with GELU and fixed sine-cosine positions (Dosovitskiy et al. 2021; He et al. 2022) where ViTok has
SwiGLU and rotary ones, and norms before both of the linear layers out.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import Dense, constrain_tokens, patchify, scanned, sincos_positions, unpatchify
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()


def _norm(param_dtype: Dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=param_dtype, name=name)


class Block(nn.Module):
    """Self-attention and a feed-forward layer of four times the width, pre-norm."""

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: _norm(self.param_dtype, name)
        attention = Attention(self.num_heads, fused=True, norm=norm("norm_attention"), **types)
        x, _ = inline(self, attention)(x)
        mlp = FeedForward(4 * x.shape[-1], norm("norm_mlp"), **types)
        return inline(self, mlp)(x), None


class Transformer(nn.Module):
    """A linear layer to the width, positions, blocks, a norm, and a linear layer out, in float32.

    The fields are the autoencoder's.
    """

    out_features: int
    width: int
    depth: int
    num_heads: int
    unroll: int
    remat_policy: str | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length in_features"], height: int, width: int
    ) -> Float[Array, "batch length out_features"]:
        """`height` and `width` of the tokens' grid."""
        dense = lambda size, dtype, name: Dense(
            size, kernel_init=xavier, dtype=dtype, param_dtype=self.param_dtype, name=name
        )
        x = dense(self.width, self.dtype, "dense_in")(tokens) + sincos_positions(
            height, width, self.width
        )
        x = constrain_tokens(x.astype(jnp.float32))
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        x, _ = blocks(self.num_heads, self.dtype, self.param_dtype, name="blocks")(x)
        return dense(self.out_features, jnp.float32, "conv_out")(
            _norm(self.param_dtype, "norm_out")(x)
        )


class AutoencoderViT(nn.Module):
    """Transformers from patches to a Gaussian of each and back.

    The defaults are ViT's base width, with half of its blocks in the encoder and all of them in the decoder.

    Attributes:
        latent_channels: of each patch.
        patch_size: side of a patch in pixels, which is the factor between images and latents.
        encoder_width, encoder_depth, encoder_heads: features of a token, divisible by 4 and by the heads;
            number of blocks, scanned with stacked parameters; heads of attention.
        decoder_width, decoder_depth, decoder_heads: likewise.
        unroll: blocks per iteration of the scans; a depth compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`) for rematerialising blocks, or None to keep
            every activation.
        latent_mean, latent_deviation: one of all channels or one of each; a diffusion model's latents are
            (latents − mean)/deviation.
        dtype: type of the matrix products; norms, softmax and the layers out are float32 always.
    """

    latent_channels: int = 16
    patch_size: int = 16
    encoder_width: int = 768
    encoder_depth: int = 6
    encoder_heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    image_channels: int = 3
    unroll: int = 1
    remat_policy: str | None = None
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return self.patch_size

    def setup(self):
        types = (self.unroll, self.remat_policy, self.dtype, self.param_dtype)
        encoder = (self.encoder_width, self.encoder_depth, self.encoder_heads)
        decoder = (self.decoder_width, self.decoder_depth, self.decoder_heads)
        self.encoder = Transformer(2 * self.latent_channels, *encoder, *types)
        self.decoder = Transformer(self.patch_size**2 * self.image_channels, *decoder, *types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[
        Float[Array, "batch latent_height latent_width latent_channels"],
        Float[Array, "batch latent_height latent_width latent_channels"],
    ]:
        """Mean and log-variance, the latter in [−30, 20], of the latents of images in [−1, 1].

        Raises:
            ValueError: height or width is not divisible by `patch_size`.
        """
        height, width = (side // self.patch_size for side in images.shape[1:3])
        tokens = self.encoder(patchify(images, self.patch_size), height, width)
        moments = tokens.reshape(len(images), height, width, 2 * self.latent_channels)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(
        self, latents: Float[Array, "batch latent_height latent_width latent_channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Images, about in [−1, 1]: nothing bounds them."""
        batch, height, width, channels = latents.shape
        tokens = self.decoder(latents.reshape(batch, height * width, channels), height, width)
        return unpatchify(
            tokens, self.patch_size, height * self.patch_size, width * self.patch_size
        )

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The reconstruction from the mean."""
        return self.decode(self.encode(images)[0])
