"""Methods that make jumps from two points of a trajectory end at the same point."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from experiments.tasks.methods.student import Losses, Method, Student
from genjax import diffusion
from genjax.diffusion import targets
from genjax.diffusion.processes import TrigFlow
from genjax.distillation import consistency, continuous_consistency, distances, pairs


@dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """`consistency.consistency_loss` with ECT's pairs: a teacher's step where there is one.

    Attributes:
        stages: by how many the step narrows, in equal parts of the training (`pairs.easy`).
        guidance_scale: of the teacher.
        huber: scale of the pseudo-Huber distance.
        anywhere: jumps end anywhere before the step, as in CTM, not at the clean end.
    """

    stages: int = 8
    guidance_scale: float = 1.0
    huber: float = 0.00054
    anywhere: bool = False
    needs_teacher = None

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        stage = (student.progress * self.stages).astype(int)
        teacher = student.teacher and consistency.solver_step(
            student.guided_teacher(self.guidance_scale), student.process
        )
        return consistency.consistency_loss(
            key,
            student.jump,
            x,
            student.condition_with_dropout,
            process=student.process,
            pairs=functools.partial(pairs.easy, times=student.times, stage=stage),
            teacher=teacher,
            distance=functools.partial(distances.pseudo_huber, scale=self.huber),
            weighting=consistency.inverse_step,
            anywhere=self.anywhere,
        )


@dataclass(frozen=True, kw_only=True)
class GridMethod(Method):
    """A method on the steps of a grid, against the averaged student.

    The grid's times are equally spaced quantiles of `config.times`: for EDM's process `karras` is
    the paper's, for rectified flow `uniform`. Jumps end at time 0, not at the start of the domain.

    Attributes:
        steps: of the grid.
        order: of the teacher's step, 1 for DDIM's or 2 for Heun's (`consistency.solver_step`).
        huber: scale of the pseudo-Huber distance; 0 takes the square.
    """

    steps: int = 18
    order: int = 1
    huber: float = 0.0
    takes_end_time = False

    def _loss(
        self,
        key: Key[Array, ""],
        student: Student,
        x: Array,
        guided: Callable | None,
        condition: PyTree,
        anywhere: bool = False,
        **conditioning: Array,
    ) -> Losses:
        own, older = (
            self.flow_map(network, student.process, student.target, **conditioning)
            for network in (student.network, student.averaged)
        )
        distance = functools.partial(distances.pseudo_huber, scale=self.huber)
        grid = quantiles(student, self.steps)
        return consistency.consistency_loss(
            key,
            own,
            x,
            condition,
            process=student.process,
            pairs=functools.partial(pairs.neighbours, grid=grid),
            teacher=guided and consistency.solver_step(guided, student.process, self.order),
            target_student=older,
            distance=distance if self.huber else distances.squared,
            anywhere=anywhere,
        )


def quantiles(student: Student, steps: int | Array, most: int | None = None) -> Array:
    """Return the grid of `steps` equal steps in the quantile of the student's times.

    Args:
        steps: may be traced, where `most` is its bound. The grid then has `most` steps, the last
            of which have no length.
    """
    place = jnp.minimum(jnp.arange((most or steps) + 1) / steps, 1.0)
    start, end = student.process.domain
    return jnp.clip(student.times(student.process, 1 - place), start, end)


@dataclass(frozen=True, kw_only=True)
class DiscreteConsistency(GridMethod):
    """`consistency.consistency_loss`, with a teacher or without one.

    Consistency distillation with a teacher, consistency training without one (Song et al. 2023,
    algorithms 2 and 3). The number of steps and the decay of the averaged student are constant. The
    paper's training may also change both by `pairs.adaptive_steps` and `pairs.adaptive_decay`.

    Attributes:
        guidance_scale: of the teacher.
    """

    guidance_scale: float = 1.0
    needs_teacher = None

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        guided = student.teacher and student.guided_teacher(self.guidance_scale)
        return self._loss(key, student, x, guided, student.condition_with_dropout)


@dataclass(frozen=True, kw_only=True)
class ImprovedConsistencyTraining(Method):
    """`consistency.consistency_loss` with the curriculum and the weights of iCT.

    Song & Dhariwal 2024. There is no teacher and no older student. The steps of the grid double
    from time to time, and are drawn by a normal distribution of log(sigma/alpha). The loss has the
    weight 1/(t − r). The grid's times are those of `DiscreteConsistency`.

    Attributes:
        first, last: steps of the grid at the start and at the end of the training.
        mean, deviation: of the normal distribution.
        huber: scale of the pseudo-Huber distance.
    """

    first: int = 10
    last: int = 1280
    mean: float = -1.1
    deviation: float = 2.0
    huber: float = 0.00054
    takes_end_time = False

    def __post_init__(self):
        """Raise ValueError if the grid would have fewer steps at the end, or none."""
        if not 1 <= self.first <= self.last:
            raise ValueError(
                f"config.method has a grid of first={self.first} and last={self.last} steps; take "
                "at least 1, and a last number that is not smaller"
            )

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        parts = 2**20  # of the training, whose share is all that a method knows
        done = (student.progress * parts).astype(int)
        steps = pairs.consistency_steps(done, parts, self.first, self.last)
        grid = quantiles(student, steps, self.last)
        levels = jnp.exp(-student.process.log_snr(grid) / 2)
        weights = pairs.log_normal_weights(levels, self.mean, self.deviation)
        return consistency.consistency_loss(
            key,
            self.flow_map(student.network, student.process, student.target),
            x,
            student.condition_with_dropout,
            process=student.process,
            pairs=functools.partial(pairs.neighbours, grid=grid, weights=weights),
            distance=functools.partial(distances.pseudo_huber, scale=self.huber),
            weighting=consistency.inverse_step,
        )


@dataclass(frozen=True, kw_only=True)
class LatentConsistency(GridMethod):
    """`consistency.consistency_loss` of a guided teacher, whose scale the student takes (LCM).

    Luo et al. 2023, algorithm 1. Its 50 steps skip 20 of the 1,000 that the teacher was trained on.

    Attributes:
        min_guidance_scale, max_guidance_scale: the paper's ω is one less.
        huber: as in `GridMethod`, on the norm of an example. The released code offers this constant
            for the difference in each dimension.
    """

    steps: int = 50
    min_guidance_scale: float = 3.0
    max_guidance_scale: float = 15.0
    huber: float = 0.001
    takes_guidance = True
    needs_teacher = True
    reads_dropout = False
    anywhere: ClassVar[bool] = False

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        scale_key, loss_key = jax.random.split(key)
        scale = jax.random.uniform(
            scale_key, x.shape[:1], minval=self.min_guidance_scale, maxval=self.max_guidance_scale
        )
        guided = diffusion.guide(student.teacher, student.condition, student.null, scale)
        conditioning = dict(anywhere=self.anywhere, guidance=scale)
        return self._loss(loss_key, student, x, guided, student.condition, **conditioning)


@dataclass(frozen=True, kw_only=True)
class TrajectoryConsistency(LatentConsistency):
    """`LatentConsistency` whose jumps end anywhere before the step (Zheng et al. 2024, TCD).

    Sample it by `trajectory_consistency`.
    """

    takes_end_time = True
    anywhere = True


@dataclass(frozen=True, kw_only=True)
class ConsistencyTrajectory(DiscreteConsistency):
    """`DiscreteConsistency` whose jumps end anywhere, and the loss at s = t (Kim et al. 2024, CTM).

    Differences from the paper: the teacher takes one step of the grid, points are compared where
    the jumps end, and the GAN's term is left out. The loss at s = t has a constant weight, and
    learns the guided teacher's prediction. The paper's learns the data, with an adaptive weight.
    """

    takes_end_time = True
    needs_teacher = True

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        jump_key, flow_key = jax.random.split(key)
        guided = student.guided_teacher(self.guidance_scale)
        loss, t = self._loss(
            jump_key, student, x, guided, student.condition_with_dropout, anywhere=True
        )
        return loss + student.flow_loss(flow_key, x, self.guidance_scale), t


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Method):
    """`continuous_consistency.continuous_consistency_loss`, of a guided teacher or of the data.

    The paper's learned weight over times is left out. A normalized tangent of length far above 0.1
    has a norm of nearly 1, so the loss hardly depends on the time.

    Attributes:
        warmup: share of the training until the tangent is whole; 0 is none.
    """

    warmup: float = 0.25
    guidance_scale: float = 1.0
    takes_end_time = False
    needs_teacher = None
    needs_process = TrigFlow
    forward_mode = True

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        teacher = lambda x, t: student.guided_velocity(x, t, self.guidance_scale)
        return continuous_consistency.continuous_consistency_loss(
            key,
            student.network,
            x,
            student.condition_with_dropout,
            process=student.process,
            times=student.times,
            teacher=teacher if student.teacher else None,
            target=student.output_target(targets.velocity),
            warmup=student.warmup(self.warmup),
        )
