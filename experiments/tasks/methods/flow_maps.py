"""Methods that learn the whole flow map: any jump from t to s."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax.diffusion import targets
from genjax.diffusion.processes import Process, RectifiedFlow, expand
from genjax.distillation import distances, flow_map_matching, mean_flow, pairs, shortcut
from genjax.distillation.flow_maps import FlowMap


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
    needs_process = RectifiedFlow
    needs_target = staticmethod(targets.velocity)
    forward_mode = True
    loss = staticmethod(mean_flow.mean_flow_loss)

    @property
    def is_guided(self) -> bool:
        return (self.guidance_scale, self.mixing) != (1, 0)

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
            student.condition_with_dropout,
            pairs=functools.partial(pairs.ordered, times=student.times, diagonal=self.diagonal),
            guided=guided if self.is_guided else None,
            distance=functools.partial(distances.adaptive, power=self.power),
        )


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow(MeanFlow):
    """`mean_flow.improved_mean_flow_loss`, with the fields of `MeanFlow`."""

    diagonal: float = 0.5
    loss = staticmethod(mean_flow.improved_mean_flow_loss)


@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """`shortcut.shortcut_loss`, its targets by the averaged parameters.

    Attributes:
        guidance_scale: of the finest velocities, from which jumps learn it (`guide_finest`).
    """

    finest: int = 128
    share: float = 0.25
    largest: float = 4.0
    guidance_scale: float = 1.0
    reads_times = False
    needs_process = RectifiedFlow
    needs_target = staticmethod(targets.velocity)

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        averaged = lambda x, t, s, c: student.averaged(x, t, c, end_time=s)
        if self.guidance_scale != 1:
            averaged = shortcut.guide_finest(averaged, student.null, self.guidance_scale)
        return shortcut.shortcut_loss(
            key,
            student.apply,
            x,
            student.condition_with_dropout,
            finest=self.finest,
            share=self.share,
            largest=self.largest,
            target_apply=averaged,
        )

    def flow_map(
        self, network: Callable, process: Process, target: Callable, **conditioning: Array
    ) -> FlowMap:
        """Return the map of `Method.flow_map`, with the end times that short jumps learned."""

        def as_trained(x, t, condition, end_time, **conditioning):
            end = shortcut.network_end_time(t, end_time, self.finest)
            return network(x, t, condition, end_time=end, **conditioning)

        return super().flow_map(as_trained, process, target, **conditioning)


@dataclass(frozen=True, kw_only=True)
class Lagrangian(Method):
    """`flow_map_matching.lagrangian_loss`; at s = t the student learns the teacher's velocity."""

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
            student.condition_with_dropout,
            process=student.process,
            pairs=functools.partial(pairs.ordered, times=student.times),
        )
        return loss + student.flow_loss(flow_key, x, self.guidance_scale), t


@dataclass(frozen=True, kw_only=True)
class Eulerian(Lagrangian):
    """`flow_map_matching.eulerian_loss`, otherwise as `Lagrangian`."""

    loss = staticmethod(flow_map_matching.eulerian_loss)


@dataclass(frozen=True, kw_only=True)
class Semigroup(Method):
    """`flow_map_matching.semigroup_loss`; at s = t the guided teacher teaches, or the data."""

    guidance_scale: float = 1.0
    needs_teacher = None

    def __call__(self, key: Key[Array, ""], student: Student, x: Array) -> Losses:
        jump_key, flow_key = jax.random.split(key)
        loss, t = flow_map_matching.semigroup_loss(
            jump_key,
            student.jump,
            x,
            student.condition_with_dropout,
            process=student.process,
            pairs=functools.partial(pairs.ordered, times=student.times),
        )
        return loss + student.flow_loss(flow_key, x, self.guidance_scale), t
