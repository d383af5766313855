"""Gemma 3's text model (Gemma Team 2025, "Gemma 3 technical report"), as an encoder of texts.

LTX-2 takes the states of all layers. A layer attends to the last `window` tokens or to all earlier
ones. The two kinds of layers have rotary positions with different frequencies.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, attention, constrain_tokens, scanned
from genjax.nn.rotary import rotary_positions, rotate

Dtype = Any
normal = nn.initializers.normal(0.02)


class Norm(nn.Module):
    """The RMS norm of the last axis in float32, times 1 + `scale`."""

    epsilon: float
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return x * (1 + scale.astype(jnp.float32))


class Block(nn.Module):
    """Self-attention and a gated feed-forward layer, each between two norms.

    Attributes:
        query_features: logits are queries·keys/√`query_features`.
    """

    num_heads: int
    num_kv_heads: int
    head_features: int
    mlp_features: int
    query_features: int
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        kind: Int[Array, ""],
        rotations: Float[Array, "2 length pairs 2"],
        masks: Bool[Array, "2 #batch 1 length length"],
    ) -> tuple[Float[Array, "batch length features"], Float[Array, "batch length features"]]:
        """Return the output, and the input, which `Gemma3Text` returns too.

        Args:
            kind: which of the `rotations` and of the `masks` this layer has.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = functools.partial(Dense, use_bias=False, kernel_init=normal, **types)
        norm = functools.partial(Norm, self.epsilon, self.param_dtype)
        h = norm(name="norm_attention")(x)
        layers = dict(query=self.num_heads, key=self.num_kv_heads, value=self.num_kv_heads)
        query, key, value = (
            dense(heads * self.head_features, name=name)(h).reshape(
                *h.shape[:2], heads, self.head_features
            )
            for name, heads in layers.items()
        )
        query, key = norm(name="query_norm")(query), norm(name="key_norm")(key)
        # A pair is feature i of either half. Products do not depend on the order of the features.
        query, key = (
            rotate(rearrange(a, "... (half pairs) -> ... (pairs half)", half=2), rotations[kind])
            for a in (query, key)
        )
        key, value = (jnp.repeat(a, self.num_heads // a.shape[2], axis=2) for a in (key, value))
        query, key = query.astype(value.dtype), key.astype(value.dtype)
        h = attention(query, key, value, masks[kind], scale=self.query_features**-0.5)
        h = dense(x.shape[-1], name="projection")(h.reshape(*h.shape[:2], -1))
        after = x + norm(name="norm_projection")(h)

        h = norm(name="norm_mlp")(after)
        inner = nn.gelu(dense(self.mlp_features, name="mlp_gate")(h))
        h = dense(x.shape[-1], name="mlp_out")(inner * dense(self.mlp_features, name="mlp_in")(h))
        return constrain_tokens(after + norm(name="norm_mlp_out")(h)), x


class Gemma3Text(nn.Module):
    """A causal transformer over text.

    Attributes:
        vocabulary_size: number of tokens.
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        num_heads, num_kv_heads: heads of the queries, and of the keys and values. Successive heads
            of the queries share a head of the keys and values.
        head_features: features of a head; all heads together may differ from the width.
        mlp_features: features inside a feed-forward layer.
        global_layers: the layers that attend to all earlier tokens, counted from 0.
        window: number of tokens that a token of the other layers attends to, itself included.
        query_features: logits are queries·keys/√`query_features`.
        theta, global_theta: of the rotary positions, `rotary_positions`, of the two kinds.
        global_stretch: positions are divided by this number in `global_layers`.
        epsilon: the norms' epsilon.
        unroll: blocks per iteration of the scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; norms, softmax and the residual stream are always float32.
    """

    vocabulary_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_features: int
    mlp_features: int
    global_layers: tuple[int, ...]
    window: int
    query_features: int = 256
    theta: float = 10_000.0
    global_theta: float = 1_000_000.0
    global_stretch: float = 1.0
    epsilon: float = 1e-6
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "states batch length features"]:
        """Return the input of each block and, last, the last block's output after the final norm.

        The `depth + 1` states are float32. LTX-2's pipeline stacks all of them.

        Args:
            mask: True at tokens of the text; other tokens then do not change the text's states.
                Published systems put padding before a text, as `Tokenizer.encode` can do.
                States of padding are finite and mean nothing. None for no padding.
        """
        embedding = nn.Embed(
            self.vocabulary_size,
            self.width,
            embedding_init=normal,
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        embedded = embedding(tokens)
        # The published networks round this scale to the type of the embeddings.
        scale = jnp.asarray(self.width**0.5, embedded.dtype).astype(jnp.float32)
        x = constrain_tokens(scale * embedded.astype(jnp.float32))
        blocks = scanned(
            Block, self.depth, self.unroll, self.remat_policy, (0, nn.broadcast, nn.broadcast)
        )
        kinds = np.isin(np.arange(self.depth), self.global_layers).astype(np.int32)
        x, inputs = blocks(
            self.num_heads,
            self.num_kv_heads,
            self.head_features,
            self.mlp_features,
            self.query_features,
            self.epsilon,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )(x, kinds, self._rotations(tokens.shape[1]), self._masks(tokens.shape[1], mask))
        last = Norm(self.epsilon, self.param_dtype, name="final_norm")(x)
        return jnp.concatenate([inputs, last[None]])

    def _rotations(self, length: int) -> Float[Array, "2 length pairs 2"]:
        positions = np.arange(length)[:, None]
        kinds = (positions, self.theta), (positions / self.global_stretch, self.global_theta)
        tables = [rotary_positions(each, (self.head_features,), theta) for each, theta in kinds]
        return jnp.stack(tables)

    def _masks(
        self, length: int, mask: Bool[Array, "batch length"] | None
    ) -> Bool[Array, "2 #batch 1 length length"]:
        distance = np.arange(length)[:, None] - np.arange(length)
        earlier = distance >= 0
        masks = np.stack([earlier & (distance < self.window), earlier])[:, None, None]
        return jnp.asarray(masks) if mask is None else masks & mask[:, None, None, :]


def _published(width, depth, heads, mlp_features, window=1024, **options) -> Gemma3Text:
    """Return a published size, in which every sixth layer is global and a head has 256 features."""
    sizes = dict(vocabulary_size=262_208, global_stretch=8.0) | options
    num_heads, num_kv_heads = heads
    return Gemma3Text(
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_features=256,
        mlp_features=mlp_features,
        global_layers=tuple(range(5, depth, 6)),
        window=window,
        **sizes,
    )


def Gemma3_1B(**options) -> Gemma3Text:
    """Return the smallest size, which has no images."""
    text_alone = dict(vocabulary_size=262_144, global_stretch=1.0)
    return _published(1152, 26, (4, 1), 6912, window=512, **text_alone | options)


def Gemma3_4B(**options) -> Gemma3Text:
    """Return the text model of the 4B."""
    return _published(2560, 34, (8, 4), 10_240, **options)


def Gemma3_12B(**options) -> Gemma3Text:
    """Return the text model of the 12B, LTX-2's text encoder."""
    return _published(3840, 48, (16, 8), 15_360, **options)
