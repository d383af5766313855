"""A decoder-only transformer over the sub-pixels of a picture, with a cache of keys and values.

Chen et al. 2020, "Generative pretraining from pixels", with the blocks of later language models.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.nn import Dense, scanned
from genjax.nn.dense import in_token_loop
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Attention, Cache, FeedForward, empty_cache, inline

Dtype = Any
small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Causal self-attention and a gated feed-forward layer."""

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "batch length features"], Cache | None],
        rotations: Float[Array, "length pairs 2"] | None,
    ) -> tuple[tuple[Float[Array, "batch length features"], Cache | None], None]:
        x, cache = carry
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.RMSNorm(name=name, **types)
        options = dict(use_bias=False, kernel_init=small, out_init=small, **types)
        attention = Attention(self.num_heads, causal=True, norm=norm("attention_norm"), **options)
        x, cache = inline(self, attention)(x, rotations=rotations, cache=cache)
        features = int(self.mlp_ratio * x.shape[-1])
        mlp = FeedForward(features, norm("mlp_norm"), nn.silu, gated=True, **options)
        return (inline(self, mlp)(x), cache), None


class PixelTransformer(nn.Module):
    """A transformer that predicts each sub-pixel from all before it, in raster order.

    A sequence starts with a token of the class; red, green and blue of a pixel follow one another.
    The output layer is zero at first, so that all levels are equally likely.

    Attributes:
        image_shape: height, width, channels.
        num_levels: levels of a sub-pixel.
        num_classes: 0 for an unconditional network, which ignores labels.
        width: features of a token; divisible by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        positions: "learned": a vector is added for each place. "rotary": queries and keys turn by
            row, column and, if there are several, channel.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`genjax.nn.scanned`), or None to keep every activation.
        dtype: type of the matrix products, and of the cache. Tokens between layers, softmax and
            logits are float32 always.
    """

    image_shape: tuple[int, int, int]
    num_levels: int = 256
    num_classes: int = 0
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 8 / 3
    positions: str = "rotary"
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    reads_given = True

    def setup(self):
        types = dict(param_dtype=self.param_dtype)
        embed = lambda count: nn.Embed(count, self.width, embedding_init=small, **types)
        self.tokens, self.start = embed(self.num_levels), embed(max(self.num_classes, 1))
        if self.positions == "learned":
            shape = (math.prod(self.image_shape), self.width)
            self.places = self.param("places", small, shape, self.param_dtype)
        elif self.positions == "rotary":
            self.rotations = rotations_of(self.image_shape, self.width // self.num_heads)
        else:
            raise ValueError(f"positions is 'learned' or 'rotary'; got {self.positions!r}")
        block = scanned(Block, self.depth, self.unroll, self.remat_policy)
        self.blocks = block(self.num_heads, self.mlp_ratio, dtype=self.dtype, **types)
        self.norm = nn.RMSNorm(**types)
        self.logits = Dense(self.num_levels, kernel_init=nn.initializers.zeros, **types)

    def __call__(
        self, levels: Int[Array, "batch height width channels"], labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width channels levels"]:
        """Return the logits of every sub-pixel given all before it.

        Raises:
            ValueError: the pictures have another shape than the network's.
        """
        if levels.shape[1:] != tuple(self.image_shape):
            raise ValueError(
                f"this network is of pictures {list(self.image_shape)}; got "
                f"{list(levels.shape[1:])}: set image_shape"
            )
        tokens = levels.reshape(len(levels), -1)
        x = jnp.concatenate([self._start(labels), self.tokens(tokens[:, :-1])], axis=1)
        logits, _ = self._decode(x, None, 0)
        return logits.reshape(*levels.shape, self.num_levels)

    def prefill(
        self, labels: Int[Array, " batch"], given: Int[Array, "batch places"] | None = None
    ) -> tuple[Float[Array, "batch levels"], Cache]:
        """Return the logits of a picture's first sub-pixel, and the cache for `step`.

        Args:
            given: levels of the first sub-pixels, fewer than the picture has. They are read in one
                pass, and the logits are those of the next sub-pixel.

        Raises:
            ValueError: `given` leaves nothing to predict.
        """
        x, length = self._start(labels), math.prod(self.image_shape)
        if given is not None:
            if given.shape[1] >= length:
                raise ValueError(
                    f"{given.shape[1]} sub-pixels are given of pictures that have {length}; give "
                    "fewer"
                )
            x = jnp.concatenate([x, self.tokens(given)], axis=1)
        size = self.width // self.num_heads
        shape = (self.depth, len(labels), self.num_heads, length, size)
        logits, cache = self._decode(x, empty_cache(*shape, dtype=self.dtype), 0)
        return logits[:, -1], cache

    def step(
        self, cache: Cache, tokens: Int[Array, " batch"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch levels"], Cache]:
        """Read the sub-pixel at a position in raster order; return the logits of the next."""
        with in_token_loop(True):
            logits, cache = self._decode(self.tokens(tokens[:, None]), cache, position + 1)
        return logits[:, 0], cache

    def _start(self, labels: Array) -> Float[Array, "batch 1 features"]:
        return self.start(labels if self.num_classes else jnp.zeros_like(labels))[:, None]

    def _decode(
        self, x: Float[Array, "batch length features"], cache: Cache | None, first: Array | int
    ) -> tuple[Float[Array, "batch length levels"], Cache | None]:
        """Return logits at successive places of the sequence, from `first` on."""
        places = lambda table: jax.lax.dynamic_slice_in_dim(jnp.asarray(table), first, x.shape[1])
        rotations = None
        if self.positions == "learned":
            x += places(self.places)
        else:
            rotations = places(self.rotations)
        (x, cache), _ = self.blocks((x.astype(jnp.float32), cache), rotations)
        return self.logits(self.norm(x)), cache


def rotations_of(
    image_shape: tuple[int, int, int], size: int
) -> Float[np.ndarray, "length pairs 2"]:
    """Return the rotations of each place: row, column and channel of the sub-pixel it predicts.

    Axes share the features of a head equally; the columns get what is left over.
    """
    height, width, channels = image_shape
    sides = image_shape if channels > 1 else (height, width)
    share = size // (2 * len(sides)) * 2
    features = (share, size - (len(sides) - 1) * share, share)[: len(sides)]
    return rotary_positions(grid_positions(*sides), features)
