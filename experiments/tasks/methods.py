"""How a few-step student learns: the losses of genjax.distillation as parts of a config.

A method is called `method(key, student, x) -> (losses, times)`. Its fields are the numbers of its
paper. What it needs of the network and of the config stands in its class attributes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax import diffusion
from genjax.diffusion.processes import expand
from genjax.diffusion.targets import Prediction
from genjax.distillation import (
    consistency,
    continuous_consistency,
    distances,
    flow_map_matching,
    flow_maps,
    guidance,
    mean_flow,
    pairs,
    shortcut,
)

Losses = tuple[Float[Array, " batch"], Float[Array, " batch"]]


@dataclass(frozen=True)
class Student:
    """What a method sees of a task in one step.

    Attributes:
        network: `(x, t, condition, **told) -> y`, with the parameters that are trained.
        averaged: the same with averaged parameters.
        condition, null: the conditions of the batch, and what replaces a dropped one.
        told: the conditions, of which some were dropped.
        dropped: which were.
        teacher: `(x_t, t, condition) -> Prediction`, or None.
        progress: the share of the training steps that are done, in [0, 1).
    """

    network: Callable
    averaged: Callable
    condition: PyTree
    null: PyTree
    told: PyTree
    dropped: Bool[Array, " batch"]
    process: diffusion.Process
    target: Callable
    times: Callable
    teacher: Callable[..., Prediction] | None
    progress: Float[Array, ""]

    def apply(self, x: Array, t: Array, s: Array, condition: PyTree) -> Array:
        """Return the network's output, told where its jump ends."""
        return self.network(x, t, condition, end_time=s)

    @property
    def jump(self) -> Callable:
        return flow_maps.flow_map(self.apply, self.process, self.target)

    def guided_teacher(self, scale: float) -> Callable[..., Prediction]:
        """Return the teacher's guided denoiser `(x_t, t)`, unconditional for dropped conditions."""
        scales = jnp.where(self.dropped, 0.0, scale)
        return diffusion.guide(self.teacher, self.condition, self.null, scales)

    def guided_velocity(self, x_t: Array, t: Array, scale: float) -> Array:
        return self.guided_teacher(scale)(x_t, t).velocity(self.process, t)

    def flow_loss(self, key: Key[Array, ""], x: Array, scale: float) -> Float[Array, " batch"]:
        """Return the loss at s = t: on the guided teacher's output, or on the data without one."""
        options = dict(process=self.process, target=self.target, times=self.times)
        network = flow_maps.diagonal(self.apply)
        if self.teacher is None:
            return diffusion.simple_loss(key, network, x, self.told, **options)[0]
        teacher = self.guided_teacher(scale)
        return guidance.imitation_loss(key, network, teacher, x, self.told, **options)[0]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method needs; a method overrides what differs.

    Attributes:
        takes_end_time: the network is told where its jump ends.
        takes_guidance: the network is told the guidance scale.
        needs_teacher: None if either will do.
        forward_mode: the loss takes forward-mode derivatives of the network.
    """

    takes_end_time: ClassVar[bool] = True
    takes_guidance: ClassVar[bool] = False
    needs_teacher: ClassVar[bool | None] = False
    forward_mode: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class MeanFlow(Method):
    """`mean_flow.mean_flow_loss`.

    Attributes:
        diagonal: share of the batch with s = t.
        guidance_scale: ω of the guided velocity that is learned; 1 is none.
        mixing: κ of that velocity.
        power: of the adaptive weight.
    """

    diagonal: float = 0.75
    guidance_scale: float = 1.0
    mixing: float = 0.0
    power: float = 1.0
    forward_mode = True
    loss = staticmethod(mean_flow.mean_flow_loss)

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        def guided(x_t, t, v):
            null = jax.tree.map(
                lambda null, a: jnp.broadcast_to(null, a.shape), student.null, student.condition
            )
            mean = mean_flow.guided_velocity(
                student.apply, x_t, t, v, student.condition, null, self.guidance_scale, self.mixing
            )
            return jnp.where(expand(student.dropped, v), v, mean)

        return self.loss(
            key,
            student.apply,
            x,
            student.told,
            pairs=functools.partial(pairs.ordered, law=student.times, diagonal=self.diagonal),
            guided=None if (self.guidance_scale, self.mixing) == (1, 0) else guided,
            distance=functools.partial(distances.adaptive, power=self.power),
        )


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow(MeanFlow):
    """`mean_flow.improved_mean_flow_loss`, with the fields of `MeanFlow`."""

    diagonal: float = 0.5
    loss = staticmethod(mean_flow.improved_mean_flow_loss)


@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """`shortcut.shortcut_loss`, its targets by the averaged parameters."""

    finest: int = 128
    share: float = 0.25
    largest: float = 4.0

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        return shortcut.shortcut_loss(
            key,
            student.apply,
            x,
            student.told,
            finest=self.finest,
            share=self.share,
            largest=self.largest,
            target_apply=lambda x, t, s, c: student.averaged(x, t, c, end_time=s),
        )


@dataclass(frozen=True, kw_only=True)
class Lagrangian(Method):
    """`flow_map_matching.lagrangian_loss` of the guided teacher, whose velocity s = t learns."""

    guidance_scale: float = 1.0
    needs_teacher = True
    forward_mode = True
    loss = staticmethod(flow_map_matching.lagrangian_loss)

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        jump_key, flow_key = jax.random.split(key)
        velocity = lambda x, t, _: student.guided_velocity(x, t, self.guidance_scale)
        loss, t = self.loss(
            jump_key,
            student.jump,
            velocity,
            x,
            student.told,
            process=student.process,
            pairs=functools.partial(pairs.ordered, law=student.times),
        )
        return loss + student.flow_loss(flow_key, x, self.guidance_scale), t


@dataclass(frozen=True, kw_only=True)
class Eulerian(Lagrangian):
    """`flow_map_matching.eulerian_loss`, otherwise as `Lagrangian`."""

    loss = staticmethod(flow_map_matching.eulerian_loss)


@dataclass(frozen=True, kw_only=True)
class Semigroup(Method):
    """`flow_map_matching.semigroup_loss`; s = t learns from the guided teacher, or from data."""

    guidance_scale: float = 1.0
    needs_teacher = None

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        jump_key, flow_key = jax.random.split(key)
        loss, t = flow_map_matching.semigroup_loss(
            jump_key,
            student.jump,
            x,
            student.told,
            process=student.process,
            pairs=functools.partial(pairs.ordered, law=student.times),
        )
        return loss + student.flow_loss(flow_key, x, self.guidance_scale), t


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
            student.told,
            process=student.process,
            pairs=functools.partial(pairs.easy, law=student.times, stage=stage),
            teacher=teacher,
            distance=functools.partial(distances.pseudo_huber, scale=self.huber),
            weighting=consistency.inverse_step,
            anywhere=self.anywhere,
        )


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Method):
    """`continuous_consistency.continuous_consistency_loss`, of a guided teacher or of the data.

    Attributes:
        warmup: share of the training until the tangent is whole.
    """

    warmup: float = 0.25
    guidance_scale: float = 1.0
    takes_end_time = False
    needs_teacher = None
    forward_mode = True

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        teacher = lambda x, t: student.guided_velocity(x, t, self.guidance_scale)
        return continuous_consistency.continuous_consistency_loss(
            key,
            student.network,
            x,
            student.told,
            process=student.process,
            times=student.times,
            teacher=teacher if student.teacher else None,
            warmup=jnp.minimum(student.progress / self.warmup, 1.0),
        )


@dataclass(frozen=True, kw_only=True)
class GuidanceDistillation(Method):
    """`guidance.guidance_loss`: one call of the student for two of the guided teacher."""

    least: float = 1.0
    largest: float = 4.0
    takes_end_time = False
    takes_guidance = True
    needs_teacher = True

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
            scales=(self.least, self.largest),
        )
