"""Reflow: rectified flow trained again on its own pairs of noise and data (Liu et al. 2023).

Teacher: a flow, which makes the pairs once. The student is an ordinary network, which takes t
alone. No derivative is taken (Liu et al. 2023, algorithm 1).

The second training is `diffusion.simple_loss(…, noise=z)` on pairs (x, z) from `couple`. Each
repetition makes the paths straighter (theorem 3.7), so fewer steps do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.losses import data_and_noise
from genjax.diffusion.processes import Process, expand
from genjax.distillation.distances import Distance, squared

Batch = Float[Array, " batch *shape"]


def straightness(
    velocity: Callable[[Batch, Array], Batch],
    x: Batch,
    z: Batch,
    trajectory: Float[Array, " times batch *shape"],
    times: Float[Array, " times"],
) -> Float[Array, " batch"]:
    """Return ∫ E‖(z − x) − v(x_t, t)‖² dt along trajectories from z to x; 0 if they are straight.

    (Liu et al. 2023, section 2.2.) The integral is a mean over steps weighted by their length, and
    the square a mean over dimensions.

    Args:
        trajectory: a sampler's with `trajectory=True`, on the grid `times`.
    """
    fill = lambda t: jnp.full(x.shape[:1], t)
    deviation = jax.lax.map(
        lambda point: squared(z - x - velocity(point[0], fill(point[1]))),
        (trajectory[:-1], times[:-1]),
    )
    lengths = times[:-1] - times[1:]
    return jnp.tensordot(lengths, deviation, axes=1)


def distilled_reflow_loss(
    flow_map: Callable[..., Batch],
    x: Batch,
    z: Batch,
    *conditioning,
    process: Process,
    distance: Distance = squared,
) -> Float[Array, " batch"]:
    """Compute the distance between one jump from noise z and the data x that the teacher made from
    z.

    (Liu et al. 2023, section 2.2, "distillation".) z has deviation 1. The jump starts from sigma·z
    at the noise end, where the teacher started too. The network is `flow_maps.flow_map`, or
    `flow_maps.ddim_map` of the flow itself.
    """
    x, z = data_and_noise(None, x, z)
    end = jnp.full(x.shape[:1], process.domain[1])
    start = jnp.full(x.shape[:1], process.clean_end)
    noise = expand(process.sigma(end), z) * z
    return distance(flow_map(noise, end, start, *conditioning) - x)
