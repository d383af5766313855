"""Inputs of a few-step network besides the time: the end of its jump, and a guidance scale."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn.dense import Dense
from genjax.nn.embeddings import sinusoidal_embedding

GUIDANCE_SCALE = 1000.0  # of a guidance scale before its sinusoids


class NumberEmbedding(nn.Module):
    """Two layers on the sinusoids of a number, the last of which starts at 0; float32.

    So a network that takes one more number starts as the network without that number.

    Attributes:
        scale: what the number is multiplied by before its sinusoids.
    """

    features: int
    scale: float
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, number: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        h = Dense(
            self.features, kernel_init=nn.initializers.normal(0.02), name="linear_in", **types
        )(sinusoidal_embedding(number * self.scale, 256))
        return Dense(self.features, kernel_init=nn.initializers.zeros, name="linear_out", **types)(
            nn.silu(h)
        )


def jump_conditioning(
    module: nn.Module,
    t: Float[Array, " batch"],
    end_time: Float[Array, " batch"] | None,
    guidance: Float[Array, " batch"] | None,
) -> Float[Array, "batch features"] | float:
    """Return what a network adds to its conditioning for `end_time` and `guidance`, 0 for neither.

    Call it in the network's compact method. A jump is given by its length t − s, as in mean flows
    (Geng et al. 2025, table 1c).

    Args:
        module: with fields `width`, `time_scale`, `param_dtype`, `takes_end_time` and
            `takes_guidance`. The scale of its times is also that of the jump's length.

    Raises:
        ValueError: an argument is given that the network does not take, or one that it takes is
            missing.
    """
    total = 0.0
    numbers = dict(end_time=end_time, guidance=guidance)
    check_numbers(module, **numbers)
    for name, number in numbers.items():
        if number is not None:
            scale = module.time_scale if name == "end_time" else GUIDANCE_SCALE
            options = dict(param_dtype=module.param_dtype, name=f"{name}_embedding")
            embedding = NumberEmbedding(module.width, scale, **options)
            total += embedding(t - number if name == "end_time" else number)
    return total


def check_numbers(module: nn.Module, **numbers: Array | None) -> None:
    """Check that each number is given if, and only if, the network takes it.

    Args:
        module: with a field `takes_NAME` for each number.

    Raises:
        ValueError: a number is given that the network does not take, or the other way round.
    """
    for name, number in numbers.items():
        takes = getattr(module, f"takes_{name}")
        if takes != (number is not None):
            raise ValueError(
                f"takes_{name}={takes}, and {name} is {'given' if number is not None else 'None'}: "
                f"{'give' if takes else 'do not give'} it, or change takes_{name}"
            )
