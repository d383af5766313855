"""The linear layer, and what it computes for attention."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn.sharding import context_size


class Dense(nn.Dense):
    """`flax.linen.Dense` as one matrix product over all tokens, with the same parameters.

    The backward pass of a product with a three-dimensional operand transposes its operands on XLA's CPU
    back end and takes 2.5 times as long; elsewhere the two compile to the same. Tokens split over devices stay as they are:
    together with split examples they are no part of one dimension.
    """

    promote_dtype: Callable = nn.Dense.promote_dtype  # Flax's own annotation cannot be checked at run time

    def __call__(self, x: Float[Array, "*batch in_features"]) -> Float[Array, "*batch features"]:
        if context_size() > 1:
            return super().__call__(x)
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


def heads_of(
    qkv: Float[Array, "batch length three_times_features"], num_heads: int
) -> Float[Array, "3 batch length heads head_features"]:
    """Queries, keys and values from the output of one layer for all three.

    Its features are (head, which of the three, feature of the head), so that some devices' part of the layer is some heads.
    """
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], num_heads, 3, -1), 3, 0)
