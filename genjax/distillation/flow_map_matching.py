"""Flow map matching: three equations that the exact flow map satisfies, each as a loss.

Boffi, Albergo & Vanden-Eijnden 2024 (with a teacher) and 2025 (self-distillation). Teacher: a
velocity v, or the student's own velocity at s = t, which `diffusion.simple_loss` at s = t must then
train. The student takes t and s.

| loss | equation | derivative |
|---|---|---|
| Lagrangian | ∂X/∂s = v(X, s) | in s, forward |
| Eulerian | ∂X/∂t + ∇X·v(x_t, t) = 0 | in t and x_t, forward |
| semigroup | X(X(x, t, r), r, s) = X(x, t, s) | none |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process
from genjax.distillation.distances import Distance, squared
from genjax.distillation.draws import draw_pairs
from genjax.distillation.flow_maps import FlowMap
from genjax.distillation.pairs import Pairs

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
Velocity = Callable[..., Batch]


def lagrangian_loss(
    key: Key[Array, ""],
    student: FlowMap,
    velocity: Velocity,
    x: Batch,
    *conditioning,
    process: Process,
    pairs: Pairs,
    distance: Distance = squared,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute d(∂X/∂s − v(X, s)), v at the point where the student arrives.

    No gradient passes through v(X, s) (Boffi et al. 2025, LSD).

    Args:
        velocity: `(x_t, t, *conditioning)`, a teacher's or the student's (`flow_maps.velocity`).
        pairs: the distribution of (t, s).
    """
    x_t, t, s, _ = draw_pairs(key, x, process, pairs, noise)
    jump = lambda s: student(x_t, t, s, *conditioning)
    x_s, change = jax.jvp(jump, (s,), (jnp.ones_like(s),))
    goal = velocity(jax.lax.stop_gradient(x_s), s, *conditioning)
    return distance(change - jax.lax.stop_gradient(goal)), t


def eulerian_loss(
    key: Key[Array, ""],
    student: FlowMap,
    velocity: Velocity,
    x: Batch,
    *conditioning,
    process: Process,
    pairs: Pairs,
    distance: Distance = squared,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute d(∂X/∂t + ∇X·v(x_t, t)): the end of a jump does not depend on where it starts.

    The gradient passes through the whole derivative of X, but not through v.
    """
    x_t, t, s, _ = draw_pairs(key, x, process, pairs, noise)
    direction = jax.lax.stop_gradient(velocity(x_t, t, *conditioning)).astype(x_t.dtype)
    jump = lambda x_t, t: student(x_t, t, s, *conditioning)
    _, change = jax.jvp(jump, (x_t, t), (direction, jnp.ones_like(t)))
    return distance(change), t


def semigroup_loss(
    key: Key[Array, ""],
    student: FlowMap,
    x: Batch,
    *conditioning,
    process: Process,
    pairs: Pairs,
    distance: Distance = squared,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute d(X(x_t, t, s) − sg X(X(x_t, t, r), r, s)) with r uniform between s and t."""
    draw_key, middle_key = jax.random.split(key)
    x_t, t, s, _ = draw_pairs(draw_key, x, process, pairs, noise)
    r = s + jax.random.uniform(middle_key, t.shape) * (t - s)
    goal = student(student(x_t, t, r, *conditioning), r, s, *conditioning)
    return distance(student(x_t, t, s, *conditioning) - jax.lax.stop_gradient(goal)), t
