"""Improved mean flow with guidance as conditioning, as a method of `Distillation`."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax.distillation import distances, mean_flow, pairs
from genjax.distillation.pixel_mean_flow import average_velocity


@dataclass(frozen=True, kw_only=True)
class GuidedMeanFlow(Method):
    """`mean_flow.guided_mean_flow_loss`; the network is a `MeanFlowDiT`.

    Attributes:
        diagonal: share of the batch with s = t.
        largest: guidance scale.
        power: of the adaptive weight.
        clean: whether both answers are images, not velocities (pMF); the config's target is
            `clean` then.
    """

    diagonal: float = 0.5
    largest: float = 8.0
    power: float = 1.0
    clean: bool = False
    takes_guidance = True
    forward_mode = True

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        def answers(x, t, s, condition, scale, interval):
            told = dict(end_time=s, guidance=scale, interval=interval)
            both = student.network(x, t, condition, **told, velocity=True)
            if not self.clean:
                return both
            return tuple(average_velocity(lambda *_, a=a: a)(x, t, s) for a in both)

        null = jax.tree.map(
            lambda null, a: jnp.broadcast_to(null, a.shape), student.null, student.condition
        )
        return mean_flow.guided_mean_flow_loss(
            key,
            answers,
            x,
            student.condition,
            null,
            student.dropped,
            pairs=functools.partial(pairs.ordered, law=student.times, diagonal=self.diagonal),
            largest=self.largest,
            distance=functools.partial(distances.adaptive, power=self.power),
        )
