"""Discriminator heads on the features of another network's blocks.

Sauer et al. 2024 (LADD); the classifier of DMD2 (Yin et al. 2024). The features come from a
diffusion model, which knows the time and the condition. So the heads take neither.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import Dense

Dtype = Any


class Head(nn.Module):
    """Two layers on each token's normalized features; the logit is the mean over tokens."""

    width: int
    param_dtype: Dtype

    @nn.compact
    def __call__(self, features: Float[Array, "batch length features"]) -> Float[Array, " batch"]:
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        h = nn.LayerNorm(use_scale=False, use_bias=False, dtype=jnp.float32)(features)
        h = nn.silu(Dense(self.width, name="linear_in", **types)(h))
        return jnp.mean(Dense(1, name="linear_out", **types)(h)[..., 0], axis=1)


class FeatureHeads(nn.Module):
    """One head for each block, with parameters of its own; the logit is the mean over heads.

    Attributes:
        width: features between a head's two layers.
    """

    width: int = 64
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "depth batch length features"]
    ) -> Float[Array, " batch"]:
        heads = nn.vmap(Head, variable_axes={"params": 0}, split_rngs={"params": True})
        return jnp.mean(heads(self.width, self.param_dtype, name="heads")(features), axis=0)
