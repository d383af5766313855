"""How a student matches distributions: its loss, and the loss of its critic.

A method is called `method(key, student, x) -> (losses, times)` for the student, and
`critic_loss(key, student, x) -> losses` for the critic. Its fields are the numbers of its paper.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from experiments.tasks.methods.student import Losses, Method, Student
from genjax import diffusion
from genjax.adversarial.objectives import Objective, hinge, non_saturating
from genjax.diffusion import targets
from genjax.diffusion.preconditioning import TrigFlowPreconditioning
from genjax.diffusion.processes import RectifiedFlow, TrigFlow
from genjax.diffusion.targets import Prediction
from genjax.diffusion.times import log_normal_sigma
from genjax.distillation import (
    adversarial,
    distances,
    distribution_matching,
    flow_maps,
    regularized_consistency,
)
from genjax.distillation.continuous_consistency import continuous_consistency_loss
from genjax.distillation.regularized_consistency import as_trigflow, rectified_flow_time

FAKE, HEAD = "fake", "head"
UNIT_TRIGFLOW = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=1.0))


@dataclass(frozen=True)
class Game(Student):
    """A student and the critic that it plays against.

    Attributes:
        fake: `(x, t, condition) -> y`, the network that learns the student's samples, or None.
        discriminator: `(x_t, t, condition) -> logits`, the discriminator, or None.
        grid: `(process, num_steps) -> times`, that of `config.sampling`.
    """

    fake: Callable | None
    discriminator: Callable | None
    grid: Callable

    def denoiser(self, network: Callable) -> Callable[..., Prediction]:
        """Return the denoiser `(x_t, t)` of a network under the conditions of the batch."""
        denoiser = diffusion.predict(network, self.process, self.target)
        return lambda x_t, t: denoiser(x_t, t, self.condition_with_dropout)

    def clean(self, x_t: Array, t: Array) -> Array:
        """Return the student's jump to the clean end."""
        end = jnp.full_like(t, self.process.clean_end)
        return flow_maps.ddim_map(self.denoiser(self.network), self.process)(x_t, t, end)

    def draw_noise(self, key: Key[Array, ""], like: Array) -> Array:
        """Return what sampling starts from, `like` in shape."""
        return self.process.prior(jax.random.split(key, len(like)), like.shape[1:])

    def simulated(self, key: Key[Array, ""], like: Array, steps: int) -> Array:
        """Return samples, each by one jump from a time of a sampler that the student has reached.

        The sampler is `flow_maps.consistency` (`simulated_inputs`).
        """
        noise_key, key = jax.random.split(key)
        jump = flow_maps.ddim_map(self.denoiser(self.network), self.process)
        times = self.grid(self.process, steps)
        inputs = distribution_matching.simulated_inputs(
            key, jump, self.process, self.draw_noise(noise_key, like), times
        )
        return self.clean(*inputs)

    def noised(self, key: Key[Array, ""], x: Array, steps: int) -> tuple[Array, Array]:
        """Return samples, each by one jump from the data with noise, and the times of the jumps.

        The times are those of the sampler's grid.
        """
        noise_key, step_key = jax.random.split(key)
        times = self.grid(self.process, steps)
        t = times[jax.random.randint(step_key, x.shape[:1], 0, steps)]
        z = jax.random.normal(noise_key, x.shape, x.dtype)
        return self.clean(self.process.corrupt(x, z, t), t), t

    def matching_loss(self, key: Key[Array, ""], samples: Array, guidance_scale: float) -> Losses:
        return distribution_matching.distribution_matching_loss(
            key,
            samples,
            self.guided_teacher(guidance_scale),
            self.denoiser(self.fake),
            process=self.process,
            times=self.times,
        )

    def fake_loss(self, key: Key[Array, ""], samples: Array) -> Float[Array, " batch"]:
        """Compute the denoising loss of the fake network, with the weight of `config.weighting`."""
        loss, _ = distribution_matching.fake_loss(
            key,
            self.fake,
            samples,
            self.condition_with_dropout,
            process=self.process,
            target=self.target,
            times=self.times,
            weighting=self.weighting,
        )
        return loss

    def adversarial_loss(
        self, loss: Callable, key: Key[Array, ""], x: Array, samples: Array, objective: Objective
    ) -> Float[Array, " batch"]:
        """Return one of the two losses of `genjax.distillation.adversarial`."""
        options = dict(process=self.process, times=self.times, objective=objective)
        return loss(key, self.discriminator, x, samples, self.condition_with_dropout, **options)


@dataclass(frozen=True, kw_only=True)
class MatchingMethod(Method):
    """A method whose student learns against a critic.

    Attributes:
        critic_updates: updates of the critic for each of the student.
        steps: of the sampler that the student trains for, on the grid of `config.sampling`.
        critic: the parts of the critic. Its fake network starts as the teacher. Its head judges by
            the features of the fake network, or by the teacher's if there is none.
    """

    critic_updates: int = 1
    steps: int = 1
    critic: ClassVar[tuple[str, ...]] = (FAKE,)
    takes_end_time = False
    needs_teacher = True
    reads_weighting = True

    def critic_loss(self, key: Key[Array, ""], student: Game, x: Array) -> Float[Array, " batch"]:
        """Compute the denoising loss of the fake network on the student's samples."""
        sample_key, fake_key = jax.random.split(key)
        return student.fake_loss(fake_key, student.simulated(sample_key, x, self.steps))


@dataclass(frozen=True, kw_only=True)
class DMD(MatchingMethod):
    """`distribution_matching_loss`, and a regression on the teacher's samples (Yin et al. 2024).

    The paper's regression is LPIPS, on pairs of noise and sample that are computed beforehand. This
    one is the mean square, on pairs that are solved in each step.

    Attributes:
        guidance_scale: of the teacher.
        regression: its weight.
        solver_steps: DDIM steps of the guided teacher from noise to data.
    """

    guidance_scale: float = 1.0
    regression: float = 0.25
    solver_steps: int = 8

    def __call__(self, key: Key[Array, ""], student: Game, x: Array) -> Losses:
        sample_key, match_key, pair_key = jax.random.split(key, 3)
        samples = student.simulated(sample_key, x, self.steps)
        loss, t = student.matching_loss(match_key, samples, self.guidance_scale)
        noise = student.draw_noise(pair_key, x)
        times = diffusion.uniform_grid(student.process, self.solver_steps)
        solved = diffusion.ddim(
            student.guided_teacher(self.guidance_scale), student.process, noise, times
        )
        own = student.clean(noise, jnp.full(len(x), times[0]))
        return loss + self.regression * distances.squared(own - jax.lax.stop_gradient(solved)), t


@dataclass(frozen=True, kw_only=True)
class DMD2(MatchingMethod):
    """`distribution_matching_loss`, and a discriminator on the fake network's features.

    Yin et al. 2024, "Improved distribution matching distillation". The fake network and the head
    learn together.

    Attributes:
        guidance_scale: of the teacher.
        adversarial: weight of the student's adversarial loss.
        discriminator: weight of the discriminator's loss beside that of the fake network.
    """

    critic_updates: int = 5
    guidance_scale: float = 1.0
    adversarial: float = 3e-3
    discriminator: float = 1e-2
    critic = (FAKE, HEAD)

    def __call__(self, key: Key[Array, ""], student: Game, x: Array) -> Losses:
        sample_key, match_key, key = jax.random.split(key, 3)
        samples = student.simulated(sample_key, x, self.steps)
        loss, t = student.matching_loss(match_key, samples, self.guidance_scale)
        judged = student.adversarial_loss(
            adversarial.generator_loss, key, x, samples, non_saturating
        )
        return loss + self.adversarial * judged, t

    def critic_loss(self, key: Key[Array, ""], student: Game, x: Array) -> Float[Array, " batch"]:
        sample_key, fake_key, key = jax.random.split(key, 3)
        samples = student.simulated(sample_key, x, self.steps)
        judged = student.adversarial_loss(
            adversarial.discriminator_loss, key, x, samples, non_saturating
        )
        return student.fake_loss(fake_key, samples) + self.discriminator * judged


@dataclass(frozen=True, kw_only=True)
class LADD(MatchingMethod):
    """A discriminator on the teacher's features alone, by the hinge loss (Sauer et al. 2024).

    There is no R1 penalty on the discriminator, and all times of the sampler are equally likely for
    the student.
    """

    critic = (HEAD,)
    reads_weighting = False

    def __call__(self, key: Key[Array, ""], student: Game, x: Array) -> Losses:
        return self._judged(adversarial.generator_loss, key, student, x)

    def critic_loss(self, key: Key[Array, ""], student: Game, x: Array) -> Float[Array, " batch"]:
        return self._judged(adversarial.discriminator_loss, key, student, x)[0]

    def _judged(self, loss, key, student, x):
        sample_key, key = jax.random.split(key)
        samples, t = student.noised(sample_key, x, self.steps)
        return student.adversarial_loss(loss, key, x, samples, hinge), t


@dataclass(frozen=True, kw_only=True)
class RCM(MatchingMethod):
    """Continuous consistency with the match of distributions (Zheng et al. 2025, rCM).

    Teacher and student predict the velocity of rectified flow. The consistency loss sees the
    networks as those of TrigFlow (`as_trigflow`). `config.times` is the distribution of times for
    the match and the critic. The grid `align_your_steps_grid` takes the published times of four
    steps, as levels: 80, tan 1.5, tan 1.4, tan 1.0 and any last one.

    The published weight of the critic is `edm` with a `data_deviation` of 1.

    Differences from the published code: there the match and the critic wait for the end of the
    warm-up. The student takes every fifth turn there, so its critic has four updates for each of
    the student, and five here. The student's inputs have random times there, and those of the
    sampler here.

    Attributes:
        guidance_scale: of the teacher.
        consistency, matching: weights of the two losses, as in the published code. Its match has
            no factor ½, so its weight of 1 is 2 here.
        mean, deviation: of log(sigma/alpha) where the consistency loss is taken.
        warmup: share of the training until the tangent is whole; 0 is none.
    """

    critic_updates: int = 5
    guidance_scale: float = 1.0
    consistency: float = 100.0
    matching: float = 2.0
    mean: float = 0.7
    deviation: float = 1.6
    warmup: float = 0.1
    needs_process = RectifiedFlow
    needs_target = staticmethod(targets.velocity)
    forward_mode = True

    def __call__(self, key: Key[Array, ""], student: Game, x: Array) -> Losses:
        sample_key, match_key, key = jax.random.split(key, 3)
        guided = lambda x_t, t: student.guided_velocity(x_t, t, self.guidance_scale)
        loss, t = continuous_consistency_loss(
            key,
            as_trigflow(student.network),
            x,
            student.condition_with_dropout,
            process=UNIT_TRIGFLOW,
            times=functools.partial(log_normal_sigma, mean=self.mean, deviation=self.deviation),
            teacher=as_trigflow(guided),
            warmup=student.warmup(self.warmup),
            tangent_rule=regularized_consistency.tangent,
        )
        samples = student.simulated(sample_key, x, self.steps)
        match, _ = student.matching_loss(match_key, samples, self.guidance_scale)
        return self.consistency * loss + self.matching * match, rectified_flow_time(t)
