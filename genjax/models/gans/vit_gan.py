"""Generator and discriminator of transformer blocks, after ViTGAN (Lee et al. 2021).

"ViTGAN: training GANs with vision transformers". As in the paper, z modulates the generator's
norms, and patches overlap in the discriminator. Differences from the paper: the modulation is
DiT's with gates, and the mapping of z has two layers, whose output is also added to the tokens.
Positions are fixed, and patches come from a linear layer. The discriminator's attention is
ordinary, and it reads the mean token, not one of the class. Gradient penalties bound its slope,
instead of spectral norm and distances. No layer mixes examples.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.transformers.dit import Block
from genjax.nn import (
    BATCH_AXES,
    Dense,
    Modulation,
    constrain,
    constrain_tokens,
    modulate,
    scanned,
    sincos_positions,
    unpatchify,
)
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward layer, each after an RMS norm; initially the identity."""

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(out_init=zeros, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.RMSNorm(dtype=jnp.float32, param_dtype=self.param_dtype, name=name)
        attention = Attention(self.num_heads, fused=True, norm=norm("norm_attention"), **types)
        x, _ = inline(self, attention)(x)
        mlp = FeedForward(int(self.mlp_ratio * x.shape[-1]), norm("norm_mlp"), **types)
        return inline(self, mlp)(x), None


class Generator(nn.Module):
    """Transformer blocks over one token per patch: its position plus a mapping of z and class.

    The mapping also modulates the blocks (`dit.Block`).

    Attributes:
        resolution: side of the images; divisible by `patch_size`.
        patch_size: side of a patch, in pixels.
        width: features of a token; divisible by 4 and by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: 0 if unconditional.
        unroll: blocks per iteration of the scan.
        dtype: type of the matrix products. Modulation, norms and softmax are always float32.

    Raises:
        ValueError: `patch_size` does not divide `resolution`.
    """

    resolution: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    latent_size: int = 64
    image_channels: int = 3
    num_classes: int = 0
    unroll: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    first_layer: ClassVar[str] = "map_in"  # the linear layer that takes z

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        side, rest = divmod(self.resolution, self.patch_size)
        if rest:
            raise ValueError(
                f"resolution {self.resolution} does not divide into patches of {self.patch_size} "
                "pixels"
            )
        w = Dense(self.width, param_dtype=self.param_dtype, name="map_in")(z)
        if self.num_classes:
            w += nn.Embed(
                self.num_classes,
                self.width,
                embedding_init=nn.initializers.normal(1.0),  # the same scale as mapped z
                param_dtype=self.param_dtype,
                name="label_embedding",
            )(labels)
        w = Dense(self.width, param_dtype=self.param_dtype, name="map_out")(nn.silu(w))
        tokens = sincos_positions(side, side, self.width) + w[:, None]
        tokens = constrain_tokens(tokens)
        blocks = scanned(Block, self.depth, self.unroll)
        tokens, _ = blocks(
            self.num_heads, self.mlp_ratio, self.dtype, self.param_dtype, name="blocks"
        )(tokens, w)
        shift, scale = Modulation(2, self.param_dtype, name="modulation")(w)
        patches = Dense(
            self.patch_size**2 * self.image_channels,
            kernel_init=xavier,
            param_dtype=self.param_dtype,
            name="head",
        )(modulate(tokens, shift, scale))
        return unpatchify(patches, self.patch_size, self.resolution, self.resolution)


class Discriminator(nn.Module):
    """A transformer over overlapping patches, and a linear layer on the mean token.

    A class adds the inner product of its embedding with the mean token (Miyato & Koyama 2018). The
    attributes are the generator's.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    num_classes: int = 0
    unroll: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " batch"]:
        tokens = nn.Conv(
            self.width,
            (2 * self.patch_size, 2 * self.patch_size),
            strides=self.patch_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="patch_embedding",
        )(images).astype(jnp.float32)
        tokens = constrain(tokens, BATCH_AXES)  # XLA cannot shard a convolution as it shards tokens
        batch, height, width, _ = tokens.shape
        tokens = tokens.reshape(batch, -1, self.width) + sincos_positions(height, width, self.width)
        tokens = constrain_tokens(tokens)
        blocks = scanned(EncoderBlock, self.depth, self.unroll)
        tokens, _ = blocks(
            self.num_heads, self.mlp_ratio, self.dtype, self.param_dtype, name="blocks"
        )(tokens)
        tokens = nn.RMSNorm(dtype=jnp.float32, param_dtype=self.param_dtype, name="norm")(tokens)
        features = tokens.mean(axis=1)
        logits = Dense(1, param_dtype=self.param_dtype, name="head")(features)[:, 0]
        if self.num_classes:
            embedding = nn.Embed(
                self.num_classes,
                self.width,
                embedding_init=small,
                param_dtype=self.param_dtype,
                name="label_embedding",
            )(labels)
            logits += jnp.sum(embedding * features, axis=-1)
        return logits
