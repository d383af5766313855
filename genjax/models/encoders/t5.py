"""T5's encoder (Raffel et al. 2020): the first version, version 1.1 and UMT5.

"Exploring the limits of transfer learning with a unified text-to-text transformer". UMT5 is that of
Chung et al. 2023.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, attention, constrain_tokens, scanned

Dtype = Any


def relative_buckets(length: int, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Return the bucket of each key's position relative to each query's, `[queries keys]`.

    Half of the buckets are for later keys. In each half, half of the buckets hold one distance
    each. The other buckets have logarithmic widths up to `max_distance`; the last one holds all
    larger distances. (Raffel et al. 2020, section 2.1, as released.)
    """
    relative = np.arange(length) - np.arange(length)[:, None]
    distance, half = np.abs(relative), num_buckets // 2
    exact = half // 2
    # float32, because the published networks were trained so.
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (octaves * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance < exact, distance, far) + half * (relative > 0)


class RelativeBias(nn.Module):
    """A bias of attention's logits that depends on the relative position alone."""

    num_heads: int
    num_buckets: int
    max_distance: int
    param_dtype: Dtype

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 heads length length"]:
        table = self.param(
            "table",
            nn.initializers.normal(0.02),
            (self.num_buckets, self.num_heads),
            self.param_dtype,
        )
        buckets = relative_buckets(length, self.num_buckets, self.max_distance)
        return jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 0)[None]


class Block(nn.Module):
    """Self-attention without 1/√features and a feed-forward layer, each residual after a norm."""

    num_heads: int
    head_features: int
    mlp_features: int
    gate: str | None
    num_buckets: int
    max_distance: int
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        bias: Float[Array, "1 heads length length"] | None,
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        batch, length, features = x.shape

        def dense(size, name, **options):
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            return Dense(size, use_bias=False, name=name, **types, **options)

        def norm(name):
            return nn.RMSNorm(
                epsilon=self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
            )

        if bias is None:
            bias = RelativeBias(
                self.num_heads,
                self.num_buckets,
                self.max_distance,
                self.param_dtype,
                name="relative_bias",
            )(length)
        h = norm("norm_attention")(x)
        # The initial weights of the queries contain the scale that attention lacks.
        init = nn.initializers.variance_scaling(
            1 / self.head_features, "fan_in", "truncated_normal"
        )
        query, key, value = (
            dense(self.num_heads * self.head_features, name, **options)(h).reshape(
                batch, length, self.num_heads, self.head_features
            )
            for name, options in (("query", dict(kernel_init=init)), ("key", {}), ("value", {}))
        )
        h = attention(query, key, value, mask, bias, scale=1.0).reshape(batch, length, -1)
        x = x + dense(features, "projection")(h)

        h = norm("norm_mlp")(x)
        inner = dense(self.mlp_features, "mlp_in")(h)
        if self.gate is None:
            inner = nn.relu(inner)
        else:
            inner = getattr(nn, self.gate)(dense(self.mlp_features, "mlp_gate")(h)) * inner
        return constrain_tokens(x + dense(features, "mlp_out")(inner)), None


class T5Encoder(nn.Module):
    """A transformer over text that encodes positions by a bias of attention alone.

    Attributes:
        vocabulary_size: number of tokens.
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        head_features: features of each of `num_heads` heads; all heads together may differ from the
            width.
        mlp_features: features inside a feed-forward layer.
        gate: the activation of the gates, "gelu" (version 1.1 and UMT5) or another of `flax.linen`.
            None for ReLU without gates.
        bias_per_block: whether each block has its own bias (UMT5) instead of one for all blocks.
        num_buckets, max_distance: of relative positions, see `relative_buckets`.
        epsilon: the norms' epsilon.
        unroll: blocks per iteration of the scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products, float32 or bfloat16. The published weights overflow
            float16 in their feed-forward layers. Norms, softmax and the residual stream are always
            float32.
    """

    vocabulary_size: int
    width: int
    depth: int
    num_heads: int
    head_features: int
    mlp_features: int
    gate: str | None = "gelu"
    bias_per_block: bool = False
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length features"]:
        """Return a state per token, after the final norm, in float32.

        Args:
            mask: True at tokens of the text; padding then does not change their states. Without a
                mask all tokens attend to padding too, as in Stable Diffusion 3 and FLUX.
        """
        embedding = nn.Embed(
            self.vocabulary_size,
            self.width,
            embedding_init=nn.initializers.normal(1.0),
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        x = constrain_tokens(embedding(tokens).astype(jnp.float32))
        positions = self.num_heads, self.num_buckets, self.max_distance, self.param_dtype
        bias = None
        if not self.bias_per_block:
            bias = RelativeBias(*positions, name="relative_bias")(tokens.shape[1])

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        x, _ = blocks(
            self.num_heads,
            self.head_features,
            self.mlp_features,
            self.gate,
            self.num_buckets,
            self.max_distance,
            self.epsilon,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )(x, bias, None if mask is None else mask[:, None, None, :])
        return nn.RMSNorm(
            epsilon=self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name="final_norm"
        )(x)


def T5_XXL(**options) -> T5Encoder:
    """Return the encoder of T5 version 1.1 that Imagen, PixArt, Stable Diffusion 3 and FLUX use."""
    return T5Encoder(32_128, 4096, 24, 64, 64, 10_240, **options)


def UMT5_XXL(**options) -> T5Encoder:
    """Return the encoder that Wan uses."""
    return T5Encoder(256_384, 4096, 24, 64, 64, 10_240, bias_per_block=True, **options)
