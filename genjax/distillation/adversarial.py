"""Adversarial distillation: a discriminator on noised samples, over a diffusion model's features.

Sauer et al. 2024 (LADD); the GAN term of DMD2 (Yin et al. 2024, section 4.3). Teacher: a denoiser.
The discriminator reads the teacher's features, and the teacher's samples may be the real examples.
The student is any generator, and the discriminator takes t. No derivative but the gradient is
taken.

A real and a generated example share a time. The released code of DMD2 draws a time for each of the
two.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key

from genjax.adversarial.objectives import Objective, hinge
from genjax.diffusion.processes import Process
from genjax.diffusion.times import TimeDistribution, independent

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def _noised_logits(key, discriminator, real, fake, process, times, *conditioning):
    """Return logits of real and generated examples at shared times, each with its own noise."""
    time_key, *noise_keys = jax.random.split(key, 3)
    t = times(process, independent(time_key, real.shape[:1]))
    judge = lambda x, key: discriminator(
        process.corrupt(x, jax.random.normal(key, x.shape, x.dtype), t), t, *conditioning
    )
    return judge(real, noise_keys[0]), judge(fake, noise_keys[1])


def discriminator_loss(
    key: Key[Array, ""],
    discriminator: Callable[..., Float[Array, " batch"]],
    real: Batch,
    fake: Batch,
    *conditioning,
    process: Process,
    times: TimeDistribution,
    objective: Objective = hinge,
) -> Float[Array, " batch"]:
    """Compute the discriminator's loss on real and generated examples with noise added.

    Args:
        discriminator: `(x_t, t, *conditioning) -> logits`, its parameters bound. Its backbone is
            the frozen teacher. Only the heads on the teacher's features are trained.
        times: the distribution of noise levels. High levels compare structure, low levels detail.
    """
    fake = jax.lax.stop_gradient(fake)
    logits = _noised_logits(key, discriminator, real, fake, process, times, *conditioning)
    return objective.discriminator(*logits)


def generator_loss(
    key: Key[Array, ""],
    discriminator: Callable[..., Float[Array, " batch"]],
    real: Batch,
    fake: Batch,
    *conditioning,
    process: Process,
    times: TimeDistribution,
    objective: Objective = hinge,
) -> Float[Array, " batch"]:
    """Compute the student's loss on its samples `fake`, through which the gradient passes."""
    logits = _noised_logits(key, discriminator, real, fake, process, times, *conditioning)
    return objective.generator(*logits)
