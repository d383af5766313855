"""Attention with its projections, from tokens to themselves or to others."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.nn.attention.dispatch import attention, attention_weights
from genjax.nn.dense import Dense

Dtype = Any
xavier = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
    """Each token of `x` looks at those of `context`: self-attention where that is `x`, else cross-attention.

    Vaswani et al. 2017, section 3.2.2. What looks where is told to who asks for it: `weights` `[batch heads queries keys]`
    in the collection "intermediates", if that is mutable.
    """

    num_heads: int
    projection_init: Callable = xavier
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys context_features"],
        mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """`mask` is True at tokens of `context` that may be looked at."""
        features = x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def heads(name, tokens):
            h = Dense(features, kernel_init=xavier, name=name, **types)(tokens)
            return h.reshape(*h.shape[:-1], self.num_heads, -1)

        query, key, value = heads("query", x), heads("key", context), heads("value", context)
        looks = None if mask is None else mask[:, None, None]
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(query, key, looks))
        h = attention(query, key, value, looks)
        return Dense(features, kernel_init=self.projection_init, name="projection", **types)(
            h.reshape(x.shape)
        )
