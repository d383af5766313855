"""Score-regularized continuous consistency: sCM's jumps with DMD's match of distributions.

Zheng et al. 2025 (rCM). Teacher: a velocity and denoiser, guided. The student takes t alone. The
loss takes the student's derivative along the trajectory, forward-mode. The consistency loss keeps
all modes of the teacher, and the distribution loss keeps samples sharp.

The loss is 100 times `continuous_consistency.continuous_consistency_loss` with the `tangent` of
this module, plus 2 times `distribution_matching.distribution_matching_loss` of the student's own
samples. These are the weights 100 and 1 of the published code (NVlabs/rcm), whose distribution loss
has no factor ½.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import expand
from genjax.distillation.continuous_consistency import derivative

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def tangent(
    velocity: Callable[[Batch, Times], Batch],
    x_t: Batch,
    t: Times,
    direction: Batch,
    warmup: float | Float[Array, ""] = 1.0,
) -> tuple[Batch, Batch]:
    """Return the network's velocity y and the tangent g with rCM's warm-up w.

    g = −cos(t)·√(1 − w²·sin²(t))·(y − dx_t/dt) − cos(t)·sin(t)·(w·x_t + dy/dt). At w = 1 it is
    that of `continuous_consistency.tangent`.
    """
    cos, sin = expand(jnp.cos(t), x_t), expand(jnp.sin(t), x_t)
    y, change = derivative(velocity, x_t, t, direction)
    turned = cos * jnp.sqrt(1 - (warmup * sin) ** 2) * (y - direction)
    return y, -turned - (warmup * cos * sin * x_t + change)


def rectified_flow_time(t: Times) -> Times:
    """Return the time of rectified flow with TrigFlow's signal-to-noise ratio: sin/(sin + cos)."""
    return jnp.sin(t) / (jnp.sin(t) + jnp.cos(t))


def as_trigflow(apply: Callable) -> Callable:
    """Turn the network of a rectified flow into one for TrigFlow and data of deviation 1.

    x_t/(cos + sin) is the rectified flow's x at `rectified_flow_time`, and

        F = ((cos − sin)·x_t + v)/(cos + sin)

    is TrigFlow's velocity of the same x̂ and ẑ. So a student of sCM starts with its teacher's
    predictions, however the teacher was trained.

    Args:
        apply: `(x, t, *conditioning) -> v`, for the target `velocity`.

    Returns:
        `(x_t, t, *conditioning) -> F`, t from 0 to π/2.
    """

    def wrapped(x_t, t, *conditioning):
        cos, sin = expand(jnp.cos(t), x_t), expand(jnp.sin(t), x_t)
        v = apply(x_t / (cos + sin), rectified_flow_time(t), *conditioning)
        return ((cos - sin) * x_t + v) / (cos + sin)

    return wrapped
