"""Pixel mean flow: one step from noise to pixels by a network that answers with data.

Lu et al. 2026. Teacher: none. The student is told t and s. The loss takes the derivative of the
network along the trajectory, forward-mode. Rectified flow.

The loss is `mean_flow.improved_mean_flow_loss` of `average_velocity(network)`, plus
`perceptual_loss` of what the average velocity says of the data.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import expand

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def average_velocity(clean: Callable, smallest: float = 0.05) -> Callable:
    """Make u of a network that answers with data: u = (x_t − x̂)/max(t, smallest).

    Data lie near a manifold of few dimensions, so x̂ is easier to learn for large patches than u.
    The bound keeps u finite at t = 0 (Li & He 2025, JiT).

    Args:
        clean: `(x, t, s, *conditioning) -> x̂`, the network with its parameters bound.
    """

    def apply(x_t, t, s, *conditioning):
        estimate = clean(x_t, t, s, *conditioning)
        return (x_t - estimate) / expand(jnp.maximum(t, smallest), x_t)

    return apply


def perceptual_loss(
    distance: Callable[[Batch, Batch], Float[Array, " batch"]],
    x: Batch,
    x_t: Batch,
    t: Times,
    u: Batch,
    latest: float = 0.8,
) -> Float[Array, " batch"]:
    """Compute a distance between x and x_t − t·u for t below `latest`, and 0 later.

    Nearer to noise x̂ is a mean of many images, which no perceptual distance should compare.

    Args:
        distance: such as LPIPS, `(generated, real) -> [batch]`.
        u: the average velocity of (x_t, t, s), through which the gradient passes.
    """
    return jnp.where(t < latest, distance(x_t - expand(t, x_t) * u, x), 0.0)
