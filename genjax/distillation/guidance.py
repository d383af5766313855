"""Guidance in one call: a student that is told the guidance scale (Meng et al. 2023, stage one).

Teacher: a network with classifier-free guidance, two calls. The student is an ordinary network,
told t and the scale. No derivative is taken.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Prediction, Target, combine, network_inputs
from genjax.diffusion.times import Law, independent
from genjax.distillation.distances import squared

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def guidance_loss(
    key: Key[Array, ""],
    apply: Callable,
    guided: Callable[[Batch, Times, Times], Prediction],
    x: Batch,
    *conditioning,
    process: Process,
    target: Target,
    times: Law,
    scales: tuple[float, float],
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute ‖f(x_t, t, w) − y‖² with the y of the guided teacher at a scale w drawn uniformly.

    Args:
        apply: `(x, t, scale, *conditioning)`, the student with its parameters bound.
        guided: `(x_t, t, scale) -> Prediction`, the teacher at scales `[batch]`, its conditioning
            bound (`diffusion.guide`).
        scales: the least and the largest scale.

    Returns:
        The loss and the time t of each example.
    """
    time_key, noise_key, scale_key = jax.random.split(key, 3)
    t = times(process, independent(time_key, x.shape[:1]))
    scale = jax.random.uniform(scale_key, t.shape, minval=scales[0], maxval=scales[1])
    z = jax.random.normal(noise_key, x.shape, x.dtype) if noise is None else noise
    x_t = process.corrupt(x, z, t)
    goal = guided(x_t, t, scale)
    y = jax.lax.stop_gradient(combine(process, target, goal.clean, goal.noise, t))
    x_in, time = network_inputs(process, x_t, t)
    return squared(apply(x_in, time, scale, *conditioning) - y), t
