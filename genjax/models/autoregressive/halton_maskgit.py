"""The MaskGIT of Besnier et al. 2025, "Halton scheduler for masked generative image transformer".

Its weights are public: the class modulates the layers, as in DiT, and a register token follows the
codes. `autoregression.reveal_in_order` samples in the order `autoregression.orders.halton`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.autoregressive.grids import OverGrid, wrong_length
from genjax.models.traits import OfClasses
from genjax.nn import Dense, Modulation, attention, constrain_tokens, scanned
from genjax.nn.modulation import per_token, shift_and_scale
from genjax.nn.transformer import FeedForward, inline

Dtype = Any
EPSILON = 1e-5  # of all norms
small = nn.initializers.normal(0.02)
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros


class Block(nn.Module):
    """Self-attention and a feed-forward layer; the class modulates both.

    Queries and keys have an RMS norm over the features of all heads, without parameters.
    """

    num_heads: int
    mlp_features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        conditioning: Float[Array, "batch features"],
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.RMSNorm(EPSILON, jnp.float32, self.param_dtype, name=name)
        dense = lambda name: Dense(
            x.shape[-1], use_bias=False, kernel_init=xavier, name=name, **types
        )
        parts = Modulation(6, self.param_dtype, name="modulation")(conditioning)
        shift, scale, gate = parts[:3]

        h = shift_and_scale(norm("attention_norm")(x), shift, scale)
        query, key, value = (dense(name)(h) for name in ("query", "key", "value"))
        all_heads = nn.RMSNorm(EPSILON, jnp.float32, use_scale=False)
        query, key = (all_heads(a).astype(value.dtype) for a in (query, key))
        heads = (a.reshape(*a.shape[:2], self.num_heads, -1) for a in (query, key, value))
        out = dense("projection")(attention(*heads).reshape(x.shape))
        x = constrain_tokens(x + per_token(gate) * out)

        options = dict(gated=True, use_bias=False, **types)
        mlp = FeedForward(self.mlp_features, norm("mlp_norm"), nn.silu, **options)
        return inline(self, mlp)(x, *parts[3:]), None


class HaltonMaskGIT(OfClasses, OverGrid, nn.Module):
    """A transformer over a grid of codes, any of which may be masked, given a class.

    The logits are those of the token embedding, whose rows they share. Label `num_classes` is the
    null class of classifier-free guidance.

    Attributes:
        vocabulary: number of codes. The token `vocabulary` is the mask (`mask_token`).
        grid: rows and columns of codes.
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        registers: tokens behind the codes that stand for nothing (Darcet et al. 2023).
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`), or None to keep every activation.
        dtype: type of the matrix products. Norms, modulation, softmax and logits are float32
            always.
    """

    vocabulary: int
    grid: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    registers: int = 1
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def mask_token(self) -> int:
        return self.vocabulary

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], labels: Int[Array, " batch"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of all tokens, of those that are not masked too.

        Raises:
            ValueError: there is another number of tokens than the grid has places.
        """
        batch, length = tokens.shape
        if length != self.length:
            raise wrong_length(length, self.grid)
        embed = lambda count, name: nn.Embed(
            count, self.width, embedding_init=small, param_dtype=self.param_dtype, name=name
        )
        table = lambda count, name: self.param(name, small, (count, self.width), self.param_dtype)
        embedding = embed(self.vocabulary + 1, "token_embedding")
        conditioning = embed(self.num_classes + 1, "label_embedding")(labels).astype(jnp.float32)
        x = (embedding(tokens) + table(length, "positions")).astype(jnp.float32)
        registers = table(self.registers, "registers").astype(jnp.float32)
        registers = jnp.broadcast_to(registers, (batch, *registers.shape))
        x = constrain_tokens(jnp.concatenate([x, registers], axis=1))

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        types = self.dtype, self.param_dtype
        mlp_features = 256 * math.ceil(8 * self.width // 3 / 256)
        x, _ = blocks(self.num_heads, mlp_features, *types, name="blocks")(x, conditioning)

        bias = lambda name, size: self.param(name, zeros, (size,), self.param_dtype)
        shift, scale = Modulation(2, self.param_dtype, name="head_modulation")(conditioning)
        x = nn.RMSNorm(EPSILON, jnp.float32, self.param_dtype, name="norm")(x[:, :length])
        x = shift_and_scale(x + bias("norm_bias", self.width), shift, scale)
        codes = embedding.embedding.astype(self.dtype)
        logits = jnp.matmul(x.astype(self.dtype), codes.T, preferred_element_type=jnp.float32)
        return (logits + bias("bias", self.vocabulary + 1))[..., : self.vocabulary]


def halton_large(**options) -> HaltonMaskGIT:
    """Return the published network for 384 pixels, over the codes of LlamaGen's tokenizer."""
    sizes = dict(vocabulary=16_384, grid=(24, 24), width=1024, depth=24, num_heads=16)
    return HaltonMaskGIT(**sizes | options)
