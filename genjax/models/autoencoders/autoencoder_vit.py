"""A variational autoencoder of two plain transformers, after ViTok.

Hansen-Estruch et al. 2025, "Learnings from scaling visual tokenizers for reconstruction and
generation", section 2. A linear layer embeds patches. The encoder ends in a linear layer to a mean
and a log-variance of each token's latent channels. The decoder begins with a linear layer to its
width and ends in one to the pixels of a patch. Encoder and decoder have separate sizes, because
only a larger decoder pays off.

Differences from the paper: blocks are pre-norm with GELU, where ViTok has SwiGLU. Positions are
fixed sines and cosines (Dosovitskiy et al. 2021; He et al. 2022), where ViTok rotates. A norm
precedes both output layers.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import Dense, constrain_tokens, patchify, scanned, sincos_positions, unpatchify
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()


def _norm(param_dtype: Dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=param_dtype, name=name)


class Block(nn.Module):
    """A pre-norm block of self-attention and a feed-forward layer of four times the width."""

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
    """A transformer between two linear layers, with fixed positions and a norm before the output.

    The output layer computes in float32.

    Attributes:
        out_features: number of features of an output token.
        width, depth, num_heads: sizes of the blocks, as in `AutoencoderViT`.
        unroll, remat_policy, dtype: as in `AutoencoderViT`.
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
        """Return the output tokens of a grid of `height` × `width` tokens."""
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


class AutoencoderViT(GaussianAutoencoder):
    """A pair of transformers from patches to Gaussians of latents, and back to patches.

    The default width is that of ViT-Base. The default encoder has half of ViT-Base's 12 blocks, and
    the decoder has all.

    Attributes:
        latent_channels: number of latent channels of a patch.
        patch_size: side of a patch in pixels, which is the factor between images and latents.
        encoder_width, decoder_width: number of features of a token, divisible by 4 and by the
            number of heads.
        encoder_depth, decoder_depth: number of blocks, scanned with stacked parameters.
        encoder_heads, decoder_heads: number of heads of attention.
        image_channels: number of channels of the images.
        unroll: number of blocks per iteration of the scans. The depth compiles slowest and runs
            fastest.
        remat_policy: name of a policy (`rematerialized`) for rematerialising blocks. None keeps all
            activations.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the matrix products. Norms, softmax and output layers are always float32.
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
        """Return the mean and the log-variance of the latents of images in [−1, 1].

        The log-variance is clipped to [−30, 20].

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
        """Decode latents to images, which lie around [−1, 1] but are not clipped."""
        batch, height, width, channels = latents.shape
        tokens = self.decoder(latents.reshape(batch, height * width, channels), height, width)
        return unpatchify(
            tokens, self.patch_size, height * self.patch_size, width * self.patch_size
        )
