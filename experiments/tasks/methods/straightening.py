"""Methods that learn from a teacher's pairs of noise and sample (`spaces.Pairs`)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax import diffusion
from genjax.distillation import straightening


@dataclass(frozen=True, kw_only=True)
class Reflow(Method):
    """`diffusion.simple_loss` on the teacher's pairs, which makes the student's paths straighter.

    The teacher of the k-th reflow is the run of reflow k − 1 (Liu et al. 2023, algorithm 1).
    """

    takes_end_time = False
    needs_teacher = True
    needs_pairs = True
    reads_weighting = True

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        return diffusion.simple_loss(
            key,
            student.network,
            x,
            student.condition_with_dropout,
            process=student.process,
            target=student.target,
            times=student.times,
            weighting=student.weighting,
            noise=student.noise,
        )


@dataclass(frozen=True, kw_only=True)
class DistilledReflow(Reflow):
    """`straightening.distilled_reflow_loss`: one jump from noise to what the teacher made of it."""

    reads_times = False
    reads_weighting = False

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        jump = self.flow_map(student.network, student.process, student.target)
        loss = straightening.distilled_reflow_loss(
            jump, x, student.noise, student.condition_with_dropout, process=student.process
        )
        return loss, jnp.full(len(x), student.process.domain[1])
