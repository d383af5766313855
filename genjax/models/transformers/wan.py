"""Wan 2.1 and 2.2: transformers over the patches of a video's latents.

Wan team 2025, "Wan: Open and advanced large-scale video generative models", section 4.2. A block is
self-attention with rotary positions in time, height and width, cross-attention to text, and a
feed-forward layer. All blocks share the modulation by the time, except for one table per block.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.nn import (
    BATCH_AXES,
    Dense,
    Text,
    VectorEmbedding,
    attention,
    constrain,
    constrain_tokens,
    modulate,
    patchify_video,
    scanned,
    sinusoidal_embedding,
    unpatchify_video,
)
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.jumps import check_numbers
from genjax.nn.modulation import layer_norm, per_frame
from genjax.nn.rotary import grid_rotations
from genjax.nn.transformer import Attention, FeedForward, Heads, exact_gelu, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


def _spread(
    vectors: list[Float[Array, "*batch features"]], length: int
) -> list[Float[Array, "*batch_or_tokens features"]]:
    """Return vectors per example as they are, and vectors per group of tokens for each token."""
    return [each if each.ndim == 2 else per_frame(each, length) for each in vectors]


class CrossAttention(Heads):
    """Attend to text and, with keys and values of their own, to an image; the results are added."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        text: Float[Array, "batch text_length features"],
        mask: Bool[Array, "batch 1 1 text_length"] | None,
        image: Float[Array, "batch image_length features"] | None,
    ) -> Float[Array, "batch length features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda name: Dense(x.shape[-1], kernel_init=xavier, name=name, **types)
        types32 = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        query, key, value = super().__call__(nn.LayerNorm(name="norm", **types32)(x), text)
        query = query.astype(value.dtype)
        out = attention(query, key.astype(value.dtype), value, mask)
        if image is not None:
            key = nn.RMSNorm(name="image_key_norm", **types32)(dense("image_key")(image))
            key, value = key.astype(value.dtype), dense("image_value")(image)
            key, value = (a.reshape(*a.shape[:2], self.num_heads, -1) for a in (key, value))
            out = out + attention(query, key, value)
        return constrain_tokens(x + dense("projection")(out.reshape(x.shape)))


class Block(nn.Module):
    """Self-attention, cross-attention, and a feed-forward layer.

    The time modulates the first and the last.
    """

    num_heads: int
    mlp_features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        modulation: Float[Array, "*batch 6 features"],
        rotations: Float[Array, "length pairs 2"],
        text: Float[Array, "batch text_length features"],
        mask: Bool[Array, "batch 1 1 text_length"] | None,
        image: Float[Array, "batch image_length features"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        heads = dict(num_heads=self.num_heads, width_norm=True, **types)
        table = ModulationTable(6, self.param_dtype, name="modulation")
        parts = _spread(table(modulation), x.shape[1])

        self_attention = Attention(norm=layer_norm(), name="self_attention", **heads)
        x, _ = self_attention(x, *parts[:3], rotations=rotations)
        x = CrossAttention(name="cross_attention", **heads)(x, text, mask, image)
        mlp = FeedForward(self.mlp_features, layer_norm(), **types)
        return inline(self, mlp)(x, *parts[3:]), None


class ImageEmbedding(nn.Module):
    """Two layers between two norms, from the states of an image's encoder to those of the network.

    Attributes:
        positions: length of the table that is added to the states; None for no table.
    """

    features: int
    positions: int | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch length image_features"]
    ) -> Float[Array, "batch length features"]:
        length, width = image.shape[1:]
        norm = lambda name: nn.LayerNorm(
            epsilon=1e-5, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        dense = lambda size, name: Dense(
            size, kernel_init=xavier, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )
        if self.positions is not None:
            if length != self.positions:
                raise ValueError(
                    f"image has {length} tokens, and image_positions={self.positions}: join the "
                    "tokens of first and last frame"
                )
            image = image + self.param("positions", small, (length, width), self.param_dtype)
        h = exact_gelu(dense(width, "linear_in")(norm("norm_in")(image)))
        return norm("norm_out")(dense(self.features, "linear_out")(h))


class Wan(nn.Module):
    """The network of Wan 2.1 and 2.2: a velocity of latents, from 1 (noise) to 0 (clean).

    Any number of frames, height and width will do. There are two ways to give frames. Wan 2.1 and
    2.2's A14B, for image-to-video, have them among the channels of `x`: after the noisy 16 come a
    mask of 4 channels and 16 of latents. Wan 2.2's 5B has clean frames in `x`, with their own
    times, 0.

    Attributes:
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        num_heads: heads of attention. A sixth of a head's features turns with the row, and as many
            with the column, both rounded down to pairs; the others turn with the frame.
        mlp_features: features between the layers of a feed-forward layer.
        patch_size: frames, rows and columns of a patch, in latents.
        takes_image: whether the network attends to `image` too.
        image_positions: number of the image's tokens, if these have a table of positions (first
            and last frame); None for no table and any number.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products; the time's embedding, modulation, norms, rotations and
            softmax are float32 always.
    """

    width: int
    depth: int
    num_heads: int
    mlp_features: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    takes_image: bool = False
    image_positions: int | None = None
    out_channels: int | None = None
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def divisor(self) -> int:
        """The number that the input's height and width are multiples of."""
        return math.lcm(*self.patch_size[1:])

    @property
    def rotary_features(self) -> tuple[int, int, int]:
        """How many of a head's features turn with the frame, the row and the column."""
        size = self.width // self.num_heads
        return size - 4 * (size // 6), 2 * (size // 6), 2 * (size // 6)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch *groups"],
        text: Text,
        image: Float[Array, "batch image_length image_features"] | None = None,
    ) -> Float[Array, "batch time height width out_channels"]:
        """
        Args:
            t: one time per example `[batch]`, or one per group of successive tokens
                `[batch groups]`: per frame of patches, or per token.
            image: the last but one hidden states of CLIP's image encoder, `[batch 257 1280]` as
                published; those of the first and the last frame one after the other.

        Raises:
            ValueError: `x` does not divide into patches, or its tokens into the groups of `t`;
                `image` is missing or not wanted, or has another length than `image_positions`.
        """
        check_numbers(self, image=image)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda init, name: Dense(self.width, kernel_init=init, name=name, **types)

        tokens = dense(xavier, "patch_embedding")(patchify_video(x, self.patch_size))
        tokens = constrain_tokens(tokens.astype(jnp.float32))
        conditioning, modulation = self._embed_times(t, tokens.shape[1])
        states = dense(small, "text_out")(nn.gelu(dense(small, "text_in")(text.tokens)))
        if self.takes_image:
            image = ImageEmbedding(
                self.width, self.image_positions, name="image_embedding", **types
            )(image)

        sides = [n // size for n, size in zip(x.shape[1:4], self.patch_size, strict=True)]
        rotations = grid_rotations([np.arange(n) for n in sides], self.rotary_features)
        mask = None if text.mask is None else text.mask[:, None, None]
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        blocks = blocks(self.num_heads, self.mlp_features, name="blocks", **types)
        tokens, _ = blocks(tokens, modulation, rotations, states, mask, image)

        table = ModulationTable(2, self.param_dtype, name="head_modulation")
        shift, scale = _spread(table(conditioning[..., None, :]), tokens.shape[1])
        patch_features = math.prod(self.patch_size) * (self.out_channels or x.shape[-1])
        head = self._dense32(patch_features, zeros, "head")
        return unpatchify_video(head(modulate(tokens, shift, scale)), self.patch_size, x.shape[1:4])

    def _embed_times(
        self, t: Float[Array, " batch *groups"], length: int
    ) -> tuple[Float[Array, " batch *groups features"], Float[Array, " batch *groups 6 features"]]:
        """Return the embedding of each time, and the modulation that blocks share."""
        if t.ndim > 2 or length % t[0].size:
            raise ValueError(
                f"t has the shape {t.shape}, and a video has {length} tokens: give one time per "
                "example, frame of patches or token"
            )
        sinusoids = sinusoidal_embedding(t.reshape(-1) * self.time_scale, 256)
        embed = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")
        conditioning = embed(sinusoids).reshape(*t.shape, self.width)
        modulation = self._dense32(6 * self.width, xavier, "modulation")(nn.silu(conditioning))
        modulation = modulation.reshape(*t.shape, 6, self.width)
        if t.ndim == 1:
            return conditioning, constrain(modulation, BATCH_AXES)
        return conditioning, constrain_tokens(modulation)

    def _dense32(self, features: int, init: nn.initializers.Initializer, name: str) -> Dense:
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        return Dense(features, kernel_init=init, name=name, **types)


def wan_1_3b(**options) -> Wan:
    """Return Wan 2.1's small network, for text alone: 1.4 billion parameters."""
    return Wan(width=1536, depth=30, num_heads=12, mlp_features=8960, **options)


def wan_14b(**options) -> Wan:
    """Return Wan 2.1's large network, and each of Wan 2.2's two experts.

    As published, image-to-video has `out_channels=16`. In Wan 2.1 it has `takes_image=True` too,
    and with a last frame `image_positions=514`.
    """
    return Wan(width=5120, depth=40, num_heads=40, mlp_features=13_824, **options)


def wan_5b(**options) -> Wan:
    """Return Wan 2.2's network of 5 billion parameters, for latents of 48 channels."""
    return Wan(width=3072, depth=30, num_heads=24, mlp_features=14_336, **options)
