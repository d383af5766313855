"""Modulation that all blocks share, except for one table per block (adaLN-single)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any


class ModulationTable(nn.Module):
    """`parts` vectors of shift, scale or gate: those that all blocks share plus a table of its own.

    Chen et al. 2024, "PixArt-α", section 2.3: S⁽ⁱ⁾ = S̄ + E⁽ⁱ⁾, with S̄ once for all blocks where
    DiT has a matrix for each.
    """

    parts: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, shared: Float[Array, "*batch parts_or_one features"]
    ) -> list[Float[Array, "*batch features"]]:
        features = shared.shape[-1]
        init = nn.initializers.normal(features**-0.5)
        table = self.param("table", init, (self.parts, features), self.param_dtype)
        parts = shared + table.astype(jnp.float32)
        return [parts[..., i, :] for i in range(self.parts)]
