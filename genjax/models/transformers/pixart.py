"""PixArt-α and -Σ: transformers conditioned by cross-attention to text (Chen et al. 2024, both).

First weights are the authors', except for attention. They draw the queries, keys and values of
self-attention as one matrix, and the keys and values of cross-attention as another. So by Xavier's
rule their variances are 1/(2·width) and 2/(3·width). Ours are 1/width.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.models.traits import OverPatches
from genjax.nn import (
    Dense,
    Text,
    VectorEmbedding,
    constrain,
    constrain_tokens,
    jump_conditioning,
    modulate,
    patchify,
    scanned,
    unpatchify,
)
from genjax.nn import sinusoidal_embedding as sinusoids
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.modulation import layer_norm
from genjax.nn.positions import interpolated_positions
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention, cross-attention to text, and a feed-forward layer (PixArt-α, figure 4).

    The time modulates the first and the last.
    """

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        modulation: Float[Array, "batch 6 features"],
        text: Float[Array, "batch text_length text_features"],
        mask: Bool[Array, "batch 1 1 text_length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        parts = ModulationTable(6, self.param_dtype, name="modulation")(modulation)
        attention = Attention(self.num_heads, norm=layer_norm(), name="self_attention", **types)
        x, _ = attention(x, *parts[:3])
        cross_attention = Attention(self.num_heads, out_init=zeros, name="cross_attention", **types)
        x, _ = cross_attention(x, context=text, mask=mask)
        mlp = FeedForward(int(self.mlp_ratio * x.shape[-1]), layer_norm(), **types)
        return inline(self, mlp)(x, *parts[3:]), None


class PixArt(OverPatches, nn.Module):
    """A transformer over image patches, with the time by adaLN-single and text by cross-attention.

    Attributes:
        patch_size: side of a patch, in pixels.
        width: features of a token; divisible by 4, by `num_heads` and, with `size_conditioning`, by
            3.
        depth: number of blocks, scanned with stacked parameters.
        base_size: patches along a side of the images of training; others have positions in the same
            range.
        interpolation_scale: by how much that grid is finer than the one of the network it was tuned
            from.
        size_conditioning: whether the network takes the size of the image, as PixArt-α at 1024
            pixels does.
        out_channels: channels of the output; as many as the input's if None. 8 as published, where
            the second half is the learned variance.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
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
    base_size: int
    interpolation_scale: float = 1.0
    size_conditioning: bool = False
    mlp_ratio: float = 4.0
    out_channels: int | None = None
    time_scale: float = 1000.0
    takes_end_time: bool = False
    takes_guidance: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _check_size(self, size: Float[Array, "batch 2"] | None) -> None:
        """Raise ValueError if `size` and `size_conditioning` do not go together."""
        if self.size_conditioning != (size is not None):
            raise ValueError(
                f"size_conditioning={self.size_conditioning}, and size={size}: this network is "
                f"{'' if self.size_conditioning else 'not '}conditioned on the height and width of "
                "the picture"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        text: Text,
        size: Float[Array, "batch 2"] | None = None,
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """
        Args:
            size: height and width of the picture in pixels, for a network with `size_conditioning`.

        Raises:
            ValueError: it has `size_conditioning` and no `size` is given, or the other way round;
                or `end_time` or `guidance` is given and not taken, or missing.
        """
        self._check_size(size)
        height, width, channels = x.shape[1:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda size, init, name: Dense(size, kernel_init=init, name=name, **types)
        dense32 = lambda size, init, name: Dense(
            size, kernel_init=init, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        tokens = dense(self.width, xavier, "patch_embedding")(patchify(x, self.patch_size))
        rows, columns = height // self.patch_size, width // self.patch_size
        positions = interpolated_positions(
            rows, columns, self.width, self.base_size, self.interpolation_scale
        )
        tokens = constrain_tokens((tokens + positions).astype(jnp.float32))

        embed = lambda x, features, name: VectorEmbedding(features, self.param_dtype, name=name)(
            sinusoids(x, 256)
        )
        conditioning = embed(t * self.time_scale, self.width, "time_embedding")
        conditioning = conditioning + jump_conditioning(self, t, end_time, guidance)
        if self.size_conditioning:
            sides = embed(size.reshape(-1), self.width // 3, "size_embedding")
            ratio = embed(size[:, 0] / size[:, 1], self.width // 3, "aspect_ratio_embedding")
            conditioning = conditioning + jnp.concatenate(
                [sides.reshape(len(x), -1), ratio], axis=-1
            )
        modulation = dense32(6 * self.width, small, "modulation")(nn.silu(conditioning))
        modulation = constrain(modulation, ("data", "fsdp")).reshape(-1, 6, self.width)

        states = dense(self.width, small, "text_in")(text.tokens)
        states = dense(self.width, small, "text_out")(nn.gelu(states))

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        tokens, _ = blocks(
            self.num_heads, self.mlp_ratio, self.dtype, self.param_dtype, name="blocks"
        )(tokens, modulation, states, None if text.mask is None else text.mask[:, None, None])

        shift, scale = ModulationTable(2, self.param_dtype, name="head_modulation")(
            conditioning[:, None]
        )
        out = dense32(self.patch_size**2 * (self.out_channels or channels), zeros, "head")(
            modulate(tokens, shift, scale)
        )
        return unpatchify(out, self.patch_size, height, width)


def pixart_xl(side: int, out_channels: int = 8, **options) -> PixArt:
    """Return PixArt-α or -Σ for latents of `side`×`side`: 32, 64, 128, and 256 of Σ alone.

    PixArt-α at 128 has `size_conditioning`.
    """
    return PixArt(
        patch_size=2,
        width=1152,
        depth=28,
        num_heads=16,
        base_size=side // 2,
        interpolation_scale=float(max(side // 64, 1)),
        out_channels=out_channels,
        **options,
    )
