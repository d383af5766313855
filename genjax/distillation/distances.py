"""Distances between a student's output and its target, one number per example.

A distance is a function of the difference, `[batch …] -> [batch]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Difference = Float[Array, " batch *shape"]
Distance = Callable[[Difference], Float[Array, " batch"]]


def squared(difference: Difference) -> Float[Array, " batch"]:
    """Return the mean square."""
    return jnp.mean(jnp.square(difference), axis=range(1, difference.ndim))


def pseudo_huber(difference: Difference, scale: float = 0.00054) -> Float[Array, " batch"]:
    """Return √(‖difference‖² + c²) − c, c = scale·√dimension (Song & Dhariwal 2024, eq. 8)."""
    dimension = difference[0].size
    c = scale * dimension**0.5
    total = jnp.sum(jnp.square(difference), axis=range(1, difference.ndim))
    return jnp.sqrt(total + c**2) - c


def adaptive(
    difference: Difference, power: float = 1.0, offset: float = 0.01
) -> Float[Array, " batch"]:
    """Return ‖difference‖²/sg(‖difference‖² + offset)^power (Geng et al. 2025, equation 22).

    With power = 1 every example's loss is nearly 1, so only the direction of its gradient matters.
    The offset is that of the released code.
    """
    total = jnp.sum(jnp.square(difference), axis=range(1, difference.ndim))
    return total / jax.lax.stop_gradient(total + offset) ** power
