"""Diffusion transformer with adaLN-Zero.

Peebles & Xie 2023, "Scalable diffusion models with transformers".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.models.traits import OfClasses, OverPatches
from genjax.nn import (
    Dense,
    Modulation,
    constrain_tokens,
    jump_conditioning,
    modulate,
    output_layer,
    patchify,
    scanned,
    sincos_positions,
    sinusoidal_embedding,
    unpatchify,
)
from genjax.nn.modulation import layer_norm
from genjax.nn.positions import interpolated_positions
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each modulated by adaLN-Zero (figure 3).

    Tokens may have several conditionings. `groups` then says which one each token has.
    """

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype
    mlp_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        conditioning: Float[Array, "batch *groups features"],
        mask: Bool[Array, "#batch 1 #queries length"] | None = None,
        groups: Int[Array, " length"] | None = None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        modulation = Modulation(6, self.param_dtype, name="modulation")(conditioning)
        if groups is not None:
            modulation = [each[:, groups] for each in modulation]
        attention = Attention(self.num_heads, fused=True, norm=layer_norm(), **types)
        x, _ = inline(self, attention)(x, *modulation[:3], mask=mask)
        mlp_features, norm = int(self.mlp_ratio * x.shape[-1]), layer_norm(self.mlp_epsilon)
        return inline(self, FeedForward(mlp_features, norm, **types))(x, *modulation[3:]), None


class Embedding(nn.Module):
    """Embed the time's sinusoids and the class as the vector that modulates the blocks."""

    width: int
    num_classes: int
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, time: Float[Array, "batch sinusoids"], labels: Int[Array, " batch"]
    ) -> Float[Array, "batch features"]:
        dense = lambda name: Dense(
            self.width, kernel_init=small, param_dtype=self.param_dtype, name=name
        )
        time = dense("time_out")(nn.silu(dense("time_in")(time)))
        label = nn.Embed(
            self.num_classes + 1,
            self.width,
            embedding_init=small,
            param_dtype=self.param_dtype,
            name="label_embedding",
        )(labels)
        return time + label


class DiT(OverPatches, OfClasses, nn.Module):
    """A transformer over image patches, conditioned on the time and the class by adaLN-Zero.

    Label `num_classes` is the null class of classifier-free guidance (`null_label`).

    Attributes:
        patch_size: side of a patch, in pixels.
        width: features of a token; divisible by 4 and by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes besides the null one.
        out_channels: channels of the output; as many as the input's if None.
        base_size: patches along a side of the images of training: those of others then have
            positions in the same range. None for positions 0, 1, 2, … at every size.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        max_period: of the sinusoids of time; diffusers' weights have another than DiT's.
        mlp_epsilon: of the norm before the feed-forward layer; diffusers' weights have another too.
        embeddings_per_block: each block has its own embeddings of time and class, as in networks
            that were trained with diffusers. The last modulation takes the first block's.
        takes_end_time: whether the network takes the end of its jump, `end_time` (flow maps).
        takes_guidance: whether the network takes a guidance scale, `guidance`.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products; modulation, norms and softmax are float32 always.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: float = 4.0
    out_channels: int | None = None
    base_size: int | None = None
    time_scale: float = 1000.0
    max_period: float = 10_000.0
    mlp_epsilon: float = 1e-6
    embeddings_per_block: bool = False
    takes_end_time: bool = False
    takes_guidance: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _conditioning(self, time: Array, labels: Array) -> tuple[Array, Array, Any]:
        """Return the blocks' conditioning, the head's, and the first's axis that is scanned."""
        options = (self.width, self.num_classes, self.param_dtype)
        if not self.embeddings_per_block:
            conditioning = inline(self, Embedding(*options))(time, labels)
            return conditioning, conditioning, nn.broadcast
        embeddings = nn.vmap(
            Embedding,
            in_axes=None,
            axis_size=self.depth,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        conditioning = embeddings(*options, name="embeddings")(time, labels)
        return conditioning, conditioning[0], 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        labels: Int[Array, " batch"],
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        height, width, channels = x.shape[1:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        tokens = Dense(self.width, kernel_init=xavier, name="patch_embedding", **types)(
            patchify(x, self.patch_size)
        )
        rows, columns = height // self.patch_size, width // self.patch_size
        if self.base_size is None:
            positions = sincos_positions(rows, columns, self.width)
        else:
            positions = interpolated_positions(rows, columns, self.width, self.base_size)
        tokens = constrain_tokens((tokens + positions).astype(jnp.float32))

        time = sinusoidal_embedding(t * self.time_scale, 256, self.max_period)
        conditioning, first, in_axes = self._conditioning(time, labels)
        jump = jump_conditioning(self, t, end_time, guidance)
        conditioning, first = conditioning + jump, first + jump
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy, in_axes)
        tokens, _ = blocks(
            self.num_heads,
            self.mlp_ratio,
            self.dtype,
            self.param_dtype,
            self.mlp_epsilon,
            name="blocks",
        )(tokens, conditioning)

        shift, scale = Modulation(2, self.param_dtype, name="modulation")(first)
        features = self.patch_size**2 * (self.out_channels or channels)
        out = output_layer(features, self.param_dtype)(modulate(tokens, shift, scale))
        return unpatchify(out, self.patch_size, height, width)


def _size(depth: int, width: int, num_heads: int) -> Callable[..., DiT]:
    def build(patch_size: int = 2, num_classes: int = 1000, **options) -> DiT:
        return DiT(
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            **options,
        )

    return build


# DiT, table 1.
DiT_S = _size(12, 384, 6)
DiT_B = _size(12, 768, 12)
DiT_M = _size(16, 1024, 16)  # Geng et al. 2025, "Mean flows", table 4
DiT_L = _size(24, 1024, 16)
DiT_XL = _size(28, 1152, 16)
