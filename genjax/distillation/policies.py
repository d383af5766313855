"""Policies: one network call predicts the data along a segment, and Euler's steps then follow the
ODE.

Chen et al. 2025 ("pi-Flow: policy-based few-step generation via imitation distillation"). Rectified
flow. The network takes t alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import expand, shift_time
from genjax.distillation.flow_maps import FlowMap

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def policy_map(apply: Callable, *, shift: float = 1.0, substeps: int = 128) -> FlowMap:
    """Make the flow map of a DX policy (Chen et al. 2025, section 3.2).

    The network's outputs u_i stand for the data x̂_i = x_t − t·u_i at equally spaced points of the
    segment, its end first. Between these points x̂ is linear. Euler's steps follow the policy's
    velocity (x − x̂)/t from t to s, without the network. Points and steps are equally spaced in the
    time before `shift_time`.

    Args:
        apply: `(x_t, t, *conditioning)`, the network with its parameters bound; it returns
            `[batch points *shape]`, at least two points.
        shift: of the times.
        substeps: Euler's steps for times from 1 to 0; a segment has its share of them, rounded.

    Returns:
        `(x_t, t, s, *conditioning) -> x_s`. It has no reverse-mode derivative.
    """

    def jump(x_t: Batch, t: Times, s: Times, *conditioning) -> Batch:
        outputs = apply(x_t, t, *conditioning)
        clean = x_t[:, None] - expand(t, outputs) * outputs
        start, end = shift_time(t, 1 / shift), shift_time(s, 1 / shift)
        count = jnp.maximum(jnp.round((start - end) * substeps), 1)
        last = outputs.shape[1] - 1

        def step(number: Array, x: Batch) -> Batch:
            done = jnp.minimum(number / count, 1)  # examples may have different counts
            more = jnp.minimum((number + 1) / count, 1)
            now, then = (shift_time(start + part * (end - start), shift) for part in (done, more))
            place = (1 - done) * last
            weights = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(last + 1)), 0)
            guess = jnp.einsum("bp,bp...->b...", weights, clean)
            moves = (done < 1) & (now > 0)  # an example at time 0 has 0, not 0/0
            change = jnp.where(moves, then / jnp.where(moves, now, 1) - 1, 0)
            return x + expand(change, x) * (x - guess)

        return jax.lax.fori_loop(0, count.max().astype(int), step, x_t.astype(clean.dtype))

    return jump
