"""Two networks of one system, each for its own noise levels."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

STEPS = 1000  # of training, to which the published systems round their times


@dataclass(frozen=True)
class Experts:
    """Wan 2.2's pair of networks: `high` denoises at high noise levels, and `low` at the others.

    One program holds both networks, and each step runs one of them.

    Attributes:
        boundary: the lowest time of `high`, in (0, 1), as a fraction of the steps of training.
    """

    high: nn.Module
    low: nn.Module
    boundary: float

    @property
    def out_channels(self) -> int | None:
        return self.high.out_channels

    @property
    def patch_size(self) -> tuple[int, int, int]:
        return self.high.patch_size

    @property
    def divisor(self) -> int:
        return self.high.divisor

    def is_high(self, t: Float[Array, " *times"]) -> Bool[Array, " *times"]:
        """Return whether times, rounded to steps of training, belong to `high`."""
        # Half a step lower, because a rounded time may be smaller than its fraction in float32.
        return t >= (math.ceil(round(STEPS * self.boundary, 6)) - 0.5) / STEPS

    def apply(
        self,
        variables: dict[str, PyTree],
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch"],
        *conditions: Any,
        **named: Any,
    ) -> Float[Array, "batch time height width out_channels"]:
        """Return the output of the network for `t`, which is the same for all examples.

        Args:
            variables: those of the two networks, as `high` and `low`.
        """
        high = lambda: self.high.apply(variables["high"], x, t, *conditions, **named)
        low = lambda: self.low.apply(variables["low"], x, t, *conditions, **named)
        return jax.lax.cond(self.is_high(jnp.max(t)), high, low)
