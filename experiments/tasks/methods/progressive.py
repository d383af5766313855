"""Methods whose student does in one call what its teacher does in two."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax import diffusion
from genjax.distillation import guidance, progressive


@dataclass(frozen=True, kw_only=True)
class GuidanceDistillation(Method):
    """`guidance.guidance_loss`: one call of the student for two of the guided teacher."""

    min_guidance_scale: float = 1.0
    max_guidance_scale: float = 4.0
    takes_end_time = False
    takes_guidance = True
    needs_teacher = True
    reads_dropout = False

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        guided = lambda x, t, scale: diffusion.guide(
            student.teacher, student.condition, student.null, scale
        )(x, t)
        return guidance.guidance_loss(
            key,
            lambda x, t, scale, c: student.network(x, t, c, guidance=scale),
            guided,
            x,
            student.condition,
            process=student.process,
            target=student.target,
            times=student.times,
            scales=(self.min_guidance_scale, self.max_guidance_scale),
        )


@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Method):
    """`progressive.progressive_distillation_loss`: a student of half as many steps in each stage.

    Salimans & Ho 2022, algorithm 2. At the end of a stage the student becomes the teacher of the
    next. The first teacher is the guided one.

    Attributes:
        num_steps: of the student in the first stage. The teacher takes twice as many, and each
            later stage half of those of the one before.
        stages: equal parts of the training.
        guidance_scale: of the first teacher.
    """

    num_steps: int = 32
    stages: int = 6
    guidance_scale: float = 1.0
    takes_end_time = False
    needs_teacher = True
    has_stages = True
    reads_times = False
    reads_weighting = True

    def __post_init__(self):
        """Raise ValueError if the steps cannot be halved as often."""
        _check_halves(self.num_steps, self.stages - 1)

    @property
    def last_steps(self) -> int:
        """Return the student's steps in the last stage."""
        return self.num_steps // 2 ** (self.stages - 1)

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        guided = student.guided_teacher(self.guidance_scale)
        previous = diffusion.predict(student.previous, student.process, student.target)
        first = lambda x_t, t, _: guided(x_t, t)
        halve = functools.partial(_halve, key, student, x, student.network)
        condition, num_steps = student.condition_with_dropout, self.num_steps
        return jax.lax.cond(
            student.stage == 0,
            lambda: halve(first, condition, num_steps),
            lambda: halve(previous, condition, num_steps // 2**student.stage),
        )


@dataclass(frozen=True, kw_only=True)
class GuidedProgressiveDistillation(GuidanceDistillation):
    """`GuidanceDistillation`, then `ProgressiveDistillation` at every guidance scale.

    Meng et al. 2023, algorithms 1 and 2. The first stage is the guidance distillation.

    Attributes:
        num_steps: of the student in the second stage; each later stage halves them.
        stages: equal parts of the training, the first included.
    """

    num_steps: int = 32
    stages: int = 7
    has_stages = True
    reads_weighting = True

    def __post_init__(self):
        """Raise ValueError if the steps cannot be halved as often."""
        _check_halves(self.num_steps, self.stages - 2)

    @property
    def last_steps(self) -> int:
        """Return the student's steps in the last stage."""
        return self.num_steps // 2 ** (self.stages - 2)

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        scale_key, loss_key = jax.random.split(key)
        scale = jax.random.uniform(
            scale_key, x.shape[:1], minval=self.min_guidance_scale, maxval=self.max_guidance_scale
        )
        network, previous = (
            functools.partial(each, guidance=scale) for each in (student.network, student.previous)
        )
        teacher = diffusion.predict(previous, student.process, student.target)
        num_steps = self.num_steps // 2 ** jnp.maximum(student.stage - 1, 0)
        return jax.lax.cond(
            student.stage == 0,
            lambda: super(GuidedProgressiveDistillation, self).__call__(key, student, x),
            lambda: _halve(loss_key, student, x, network, teacher, student.condition, num_steps),
        )


def _check_halves(num_steps: int, times: int) -> None:
    if num_steps < 1 or times < 0 or num_steps % 2**times:
        raise ValueError(
            f"config.method.num_steps is {num_steps}, which cannot be halved {times} times; take a "
            "power of two, or change config.method.stages"
        )


def _halve(
    key: Key[Array, ""],
    student: Student,
    x: Array,
    network: Callable,
    teacher: Callable,
    condition: Array,
    num_steps: int | Int[Array, ""],
) -> Losses:
    return progressive.progressive_distillation_loss(
        key,
        network,
        teacher,
        x,
        condition,
        process=student.process,
        target=student.target,
        num_steps=num_steps,
        weighting=student.weighting,
    )
