"""Guidance in one call: a student that takes the guidance scale.

Meng et al. 2023, algorithm 1, the first of two stages (`progressive` is the second). Teacher: a
network with classifier-free guidance, which takes two calls. The student is an ordinary network,
which takes t and the scale. No derivative is taken.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import (
    Prediction,
    Target,
    check_output,
    check_prediction,
    combine,
    network_inputs,
)
from genjax.diffusion.times import TimeDistribution
from genjax.distillation.distances import squared
from genjax.distillation.draws import draw_times

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def imitation_loss(
    key: Key[Array, ""],
    apply: Callable,
    teacher: Callable[[Batch, Times], Prediction],
    x: Batch,
    *conditioning,
    process: Process,
    target: Target,
    times: TimeDistribution,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute ‖f(x_t, t) − y‖² with the y of a teacher in place of the data's.

    Args:
        apply: the student with its parameters bound, called as in `diffusion.predict`.
        teacher: `(x_t, t) -> Prediction`, its conditioning bound.

    Returns:
        The loss and the time t of each example.
    """
    x_t, t, _ = draw_times(key, x, process, times, noise)
    goal = teacher(x_t, t)
    check_prediction(goal)
    y = jax.lax.stop_gradient(combine(process, target, goal.clean, goal.noise, t))
    output = apply(*network_inputs(process, x_t, t), *conditioning)
    check_output(output, x_t)
    return squared(output - y), t


def guidance_loss(
    key: Key[Array, ""],
    apply: Callable,
    guided: Callable[[Batch, Times, Times], Prediction],
    x: Batch,
    *conditioning,
    scales: tuple[float, float],
    **options,
) -> tuple[Times, Times]:
    """Compute `imitation_loss` of the guided teacher at a scale drawn uniformly for each example.

    Args:
        apply: `(x, t, scale, *conditioning)`, the student with its parameters bound.
        guided: `(x_t, t, scale) -> Prediction`, the teacher at scales `[batch]`, its conditioning
            bound (`diffusion.guide`).
        scales: the least and the largest scale.
        options: process, target, times and noise of `imitation_loss`.
    """
    scale_key, key = jax.random.split(key)
    scale = jax.random.uniform(scale_key, x.shape[:1], minval=scales[0], maxval=scales[1])
    student = lambda x, t, *conditioning: apply(x, t, scale, *conditioning)
    teacher = lambda x_t, t: guided(x_t, t, scale)
    return imitation_loss(key, student, teacher, x, *conditioning, **options)
