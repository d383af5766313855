"""The protocol of methods: a method says what it needs, and sees a `Student` in every step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from genjax import diffusion
from genjax.diffusion.targets import Prediction
from genjax.distillation import flow_maps, guidance

Losses = tuple[Float[Array, " batch"], Float[Array, " batch"]]


@dataclass(frozen=True, kw_only=True)
class Student:
    """The part of a task that a method sees in one step.

    Attributes:
        network: `(x, t, condition, **conditioning) -> y`, with the parameters that are trained.
        averaged: the same with averaged parameters.
        condition, null: the conditions of the batch, and what replaces a dropped one.
        condition_with_dropout: the conditions, of which some were dropped.
        dropped: which were.
        teacher: `(x_t, t, condition) -> Prediction`, or None.
        progress: the share of the training steps that are done, in [0, 1).
        weighting: of `config.weighting`.
        noise: from which the teacher made the examples, where the data are pairs; None otherwise.
        stage: the number of the current stage, from 0, for methods with stages.
        previous: the network as it was when that stage began.
    """

    network: Callable
    averaged: Callable
    condition: PyTree
    null: PyTree
    condition_with_dropout: PyTree
    dropped: Bool[Array, " batch"]
    process: diffusion.Process
    target: Callable
    times: Callable
    teacher: Callable[..., Prediction] | None
    progress: Float[Array, ""]
    weighting: Callable | None = None
    noise: Array | None = None
    stage: Int[Array, ""] | None = None
    previous: Callable | None = None

    def apply(self, x: Array, t: Array, s: Array, condition: PyTree) -> Array:
        """Return the network's output for a jump that ends at s."""
        return self.network(x, t, condition, end_time=s)

    @property
    def jump(self) -> Callable:
        return flow_maps.flow_map(self.apply, self.process, self.target)

    def output_target(self, default: Callable) -> Callable | None:
        """Return what the network's output stands for; None if it is the `default` target."""
        return None if getattr(self.target, "func", None) is default else self.target

    def guided_teacher(self, scale: float) -> Callable[..., Prediction]:
        """Return the teacher's guided denoiser `(x_t, t)`, unconditional for dropped conditions."""
        scales = jnp.where(self.dropped, 0.0, scale)
        return diffusion.guide(self.teacher, self.condition, self.null, scales)

    def guided_velocity(self, x_t: Array, t: Array, scale: float) -> Array:
        return self.guided_teacher(scale)(x_t, t).velocity(self.process, t)

    def warmup(self, share: float) -> Float[Array, ""] | float:
        """Return how much of a warm-up, the first `share` of the training, is done, up to 1."""
        return jnp.minimum(self.progress / share, 1.0) if share else 1.0

    def flow_loss(self, key: Key[Array, ""], x: Array, scale: float) -> Float[Array, " batch"]:
        """Return the loss at s = t: on the guided teacher's output, or on the data without one."""
        options = dict(process=self.process, target=self.target, times=self.times)
        network = flow_maps.diagonal(self.apply)
        if self.teacher is None:
            return diffusion.simple_loss(key, network, x, self.condition_with_dropout, **options)[0]
        teacher = self.guided_teacher(scale)
        return guidance.imitation_loss(
            key, network, teacher, x, self.condition_with_dropout, **options
        )[0]


@dataclass(frozen=True, kw_only=True)
class Method:
    """The needs of a method. Each method overrides those that differ.

    Attributes:
        takes_end_time: the network takes the end of its jump.
        takes_guidance: the network takes the guidance scale.
        needs_teacher: None if either will do.
        needs_process: the class of processes that the loss holds for; None if it holds for all.
        needs_target: what the loss takes the network's output for, the teacher's too. None if the
            loss reads `config.target`.
        reads_times: the loss draws times by `config.times`.
        reads_weighting: the loss has the weight of `config.weighting`.
        reads_dropout: the loss drops conditions at the rate of `config.conditioning_dropout`. A
            student that takes the guidance scale does not need it: it is sampled without guidance.
        forward_mode: the loss takes forward-mode derivatives of the network.
        needs_pairs: the data are pairs of noise and the sample that the teacher made of it. The
            loss does not call the teacher itself.
        has_stages: the training has `stages` equal parts. In each part the student learns from
            itself as it was at the end of the part before.
    """

    takes_end_time: ClassVar[bool] = True
    takes_guidance: ClassVar[bool] = False
    needs_teacher: ClassVar[bool | None] = False
    needs_process: ClassVar[type | None] = None
    needs_target: ClassVar[Callable | None] = None
    reads_times: ClassVar[bool] = True
    reads_weighting: ClassVar[bool] = False
    reads_dropout: ClassVar[bool] = True
    forward_mode: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    has_stages: ClassVar[bool] = False

    @property
    def is_guided(self) -> bool:
        """Whether the loss reads the null condition, of the teacher or else of the student."""
        return self.takes_guidance or getattr(self, "guidance_scale", 1.0) != 1

    def flow_map(
        self, network: Callable, process: diffusion.Process, target: Callable, **conditioning: Array
    ) -> flow_maps.FlowMap:
        """Return the map `(x_t, t, s, condition) -> x_s` of a network of this method.

        Args:
            network: `(x, t, condition, **conditioning) -> y`, its parameters bound.
            conditioning: the guidance scale, `guidance`, if the network takes it.
        """
        if self.takes_end_time:
            apply = lambda x, t, s, condition: network(x, t, condition, end_time=s, **conditioning)
            return flow_maps.flow_map(apply, process, target)
        denoiser = diffusion.predict(functools.partial(network, **conditioning), process, target)
        return flow_maps.ddim_map(denoiser, process)
