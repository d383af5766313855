"""The linear layer, and what it computes for attention."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from genjax.nn.attention.dispatch import current_platform
from genjax.nn.sharding import context_size


class Dense(nn.Dense):
    """`flax.linen.Dense` with the same parameters, whose output rematerialisation may keep as "product".

    On XLA's CPU back end it is one matrix product over all tokens: the backward pass of a product with a three-dimensional
    operand transposes its operands there and takes 2.5 times as long. On TPUs the dimensions stay apart, since XLA does not
    fuse a vector per example with a product over all tokens, and then a norm, a modulation or a gate is a pass over memory.
    Tokens split over devices stay as they are: together with split examples they are no part of one dimension.
    """

    promote_dtype: Callable = nn.Dense.promote_dtype  # Flax's own annotation cannot be checked at run time

    def __call__(self, x: Float[Array, "*batch in_features"]) -> Float[Array, "*batch features"]:
        if context_size() > 1 or current_platform() != "cpu":
            return checkpoint_name(super().__call__(x), "product")
        product = checkpoint_name(super().__call__(x.reshape(-1, x.shape[-1])), "product")
        return product.reshape(*x.shape[:-1], self.features)


class QueryKeyValue(nn.Module):
    """The queries, keys and values of tokens from one matrix, whose three parts are multiplied apart.

    Columns are in the order of `heads_of`: (head, which of the three, feature of the head). To bring the matrix into another
    order takes less than to bring the products into it, which have more rows.
    """

    num_heads: int
    use_bias: bool
    kernel_init: Callable
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> list[Float[Array, "batch length heads head_features"]]:
        features = x.shape[-1]
        params = {
            "kernel": self.param("kernel", self.kernel_init, (features, 3 * features), self.param_dtype)
        }
        if self.use_bias:
            params["bias"] = self.param("bias", nn.initializers.zeros, (3 * features,), self.param_dtype)
        dense = Dense(features, self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype, parent=None)
        of_heads = lambda a: a.reshape(*a.shape[:-1], self.num_heads, 3, -1)
        part = lambda a, i: of_heads(a)[..., i, :].reshape(*a.shape[:-1], features)
        products = (dense.apply({"params": {n: part(a, i) for n, a in params.items()}}, x) for i in range(3))
        return [product.reshape(*x.shape[:2], self.num_heads, -1) for product in products]


def heads_of(
    qkv: Float[Array, "batch length three_times_features"], num_heads: int
) -> Float[Array, "3 batch length heads head_features"]:
    """Queries, keys and values from the output of one layer for all three.

    Its features are (head, which of the three, feature of the head), so that some devices' part of the layer is some heads.
    """
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], num_heads, 3, -1), 3, 0)
