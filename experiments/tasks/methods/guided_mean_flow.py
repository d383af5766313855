"""Improved mean flow with guidance as conditioning, as a method of `Distillation`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax.diffusion import targets
from genjax.diffusion.processes import RectifiedFlow
from genjax.distillation import distances, mean_flow, pairs


@dataclass(frozen=True, kw_only=True)
class GuidedMeanFlow(Method):
    """`mean_flow.guided_mean_flow_loss`; the network is a `MeanFlowDiT`.

    Attributes:
        diagonal: share of the batch with s = t.
        max_guidance_scale: scales are drawn from 1 to it.
        power: of the adaptive weight.
    """

    diagonal: float = 0.5
    max_guidance_scale: float = 8.0
    power: float = 1.0
    smallest: ClassVar[float] = 0.0
    takes_guidance = True
    needs_process = RectifiedFlow
    needs_target = staticmethod(targets.velocity)
    forward_mode = True

    def velocities(self, student: Student) -> Callable:
        """Return `(x, t, s, condition, scale, interval) -> (u, v)` of the student's network."""

        def velocities(x, t, s, condition, scale, interval):
            conditioning = dict(end_time=s, guidance=scale, interval=interval)
            return student.network(x, t, condition, **conditioning, velocity=True)

        return velocities

    def extra(self, key: Key[Array, ""], student: Student, x: Array) -> Callable | None:
        """Return a loss `(x_t, t, u) -> [batch]` that is added, or None."""

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        null = jax.tree.map(
            lambda null, a: jnp.broadcast_to(null, a.shape), student.null, student.condition
        )
        return mean_flow.guided_mean_flow_loss(
            key,
            self.velocities(student),
            x,
            student.condition,
            null,
            student.dropped,
            pairs=functools.partial(pairs.ordered, times=student.times, diagonal=self.diagonal),
            max_guidance_scale=self.max_guidance_scale,
            smallest=self.smallest,
            extra=self.extra(jax.random.fold_in(key, 3), student, x),  # the loss has keys 0 to 2
            distance=functools.partial(distances.adaptive, power=self.power),
        )
