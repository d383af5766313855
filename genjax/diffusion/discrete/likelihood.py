"""Bounds on the likelihood of data under a discrete diffusion model, in nats per sample.

`diffusion.bits_per_dimension` converts them.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr
from jaxtyping import Array, Float, Key

from genjax.diffusion.discrete.losses import (
    cross_entropy,
    of_tokens,
    shape_of_times,
    step_divergence,
)
from genjax.diffusion.discrete.processes import DiscreteProcess, Tokens
from genjax.diffusion.discrete.targets import Denoiser
from genjax.diffusion.likelihood import Bound
from genjax.diffusion.processes import expand
from genjax.diffusion.times import TimeDistribution, uniform

JUST_AFTER_CLEAN = 2.0**-100  # a time at which only a schedule that jumps has noise


def _total(each):
    return jnp.sum(each, range(1, each.ndim))


def _prior(process, x, t):
    """Return KL(q(x_t | x) ‖ π) of each sample."""
    return _total(rel_entr(process.marginal(x, t), process.noise_distribution))


def discrete_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: DiscreteProcess,
    x: Tokens,
    times: Float[Array, " times"],
) -> Bound:
    """Compute the bound of ancestral sampling with these steps.

    It is Σ KL(q(x_s | x_t, x) ‖ p(x_s | x_t)) over steps t → s (Austin et al. 2021, D3PM, equation
    1). x_t is drawn once for each step. The prior term is exact. It is infinite for `Masked` if the
    first time keeps some tokens.

    Args:
        denoiser: `(x_t, t) -> log p(x | x_t)`.
        x: data `[batch …]`.
        times: a grid, noise end first. The last step, to the clean end, is −log p(x | x_t), so
            there is no other reconstruction term.
    """

    def add(total, step):
        number, t, s = step
        each_t = jnp.full(len(x), t)
        x_t = process.corrupt(jax.random.fold_in(key, number), x, each_t)
        log_p = denoiser(x_t, each_t)
        return total + _total(step_divergence(process, x, x_t, log_p, t, s)), None

    zeros = jnp.zeros(len(x), times.dtype)
    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    diffusion, _ = jax.lax.scan(add, zeros, steps)
    return Bound(_prior(process, x, times[0]), diffusion, zeros)


def continuous_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: DiscreteProcess,
    x: Tokens,
    times: TimeDistribution = uniform,
    num_times: int = 1,
    block_length: int | None = None,
) -> Bound:
    """Compute the bound of infinitely many steps, the integral of `divergence_rate` over t.

    Its expectation is the same for every distribution of times, and for `Masked` for every
    schedule. It is −log p(x) exactly, if the denoiser is. The prior term is as in `discrete_bound`.
    The reconstruction term is −log p(x | x_t) at the domain's start. It is 0 unless the domain
    starts after the clean end, or the schedule jumps there as `Geometric` does.

    Args:
        denoiser: `(x_t, t) -> log p(x | x_t)`.
        x: data `[batch …]`.
        times: the distribution of the times.
        num_times: the number of times per sample, one in each of as many equally likely parts.
        block_length: as for `losses.bound_loss`. Each block has times of its own, and the denoiser
            knows the clean tokens of earlier blocks.

    Raises:
        ValueError: x does not divide into the blocks.
    """
    first, last = process.domain

    def add(total, part):
        noise_key, time_key = jax.random.split(jax.random.fold_in(key, part))
        u = (part + jax.random.uniform(time_key, shape_of_times(x, block_length))) / num_times
        # u may be rounded to an end, where rates may be infinite.
        u = jnp.clip(u, 2.0**-24, 1 - 2.0**-24)
        t, slope = jax.jvp(lambda u: times(process, u), (u,), (jnp.ones_like(u),))
        t, slope = (of_tokens(each, x, block_length) for each in (t, slope))
        x_t = process.corrupt(noise_key, x, t)
        rate = process.divergence_rate(x, x_t, denoiser(x_t, t), t)
        return total + _total(expand(slope, rate) * rate) / num_times, None

    zeros = jnp.zeros(len(x))
    diffusion, _ = jax.lax.scan(add, zeros, jnp.arange(num_times))
    start = jnp.asarray(max(first, JUST_AFTER_CLEAN), zeros.dtype)
    t = of_tokens(jnp.full(shape_of_times(x, block_length), start), x, block_length)

    def reconstruct():
        x_t = process.corrupt(jax.random.fold_in(key, num_times), x, t)
        return _total(cross_entropy(denoiser(x_t, t), x)).astype(zeros.dtype)

    reconstruction = jax.lax.cond(process.sigma(start) > 1e-6, reconstruct, lambda: zeros)
    return Bound(_prior(process, x, jnp.asarray(last, zeros.dtype)), diffusion, reconstruction)
