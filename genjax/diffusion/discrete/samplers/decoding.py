"""Decoding by confidence: each step accepts the tokens with the most confident predictions."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.diffusion.discrete.guidance import Scale, check_temperature, tempered
from genjax.diffusion.discrete.processes import DiscreteProcess, Masked, Probabilities, Tokens
from genjax.diffusion.discrete.samplers.steps import Keys, draw, fold
from genjax.diffusion.discrete.targets import Denoiser
from genjax.diffusion.samplers.tables import check_times

Time = Float[Array, ""]
Count = Int[Array, "..."]  # one for all samples, or one per sample
Places = Bool[Array, " batch *shape"]
Scalar = float | Float[Array, ""]


def _target(process, length, t):
    """Return how many of `length` tokens are data at time t, rounded up."""
    return jnp.ceil(length * process.alpha(t) - 1e-3).astype(int)  # 1e-3: rounding of alpha


def per_step(process: DiscreteProcess, length: int, accepted: Count, t: Time, s: Time) -> Count:
    """Return how many more tokens are data at time s than at time t (LLaDA2).

    Decoding ends early, if steps accept more.
    """
    return _target(process, length, s) - _target(process, length, t)


def in_total(process: DiscreteProcess, length: int, accepted: Count, t: Time, s: Time) -> Count:
    """Return how many tokens are missing of those that are data at time s (DiffusionGemma)."""
    return _target(process, length, s) - accepted


def _decode(rule, distribution, permanent, denoiser, process, noise, times, *, keys, trajectory):
    """Accept and draw tokens step by step; noise anew what is not accepted.

    `distribution(log_p, t)` is what tokens are drawn from. `permanent` says that what was accepted
    stays. Then the network is not evaluated once all is accepted.
    """
    check_times(times)
    given = noise != process.mask if isinstance(process, Masked) else jnp.zeros(noise.shape, bool)

    def step(state, number, t, s):
        x, accepted = state
        token_keys, noise_keys = (fold(fold(keys, number), part) for part in range(2))
        each_t = jnp.full(len(x), t)
        log_p = denoiser(x, each_t)
        tokens = draw(token_keys, jnp.exp(distribution(log_p, each_t))).astype(x.dtype)
        new = rule(log_p, tokens, accepted, t, s)
        x = jnp.where(new, tokens, x)
        accepted = accepted | new if permanent else new
        fresh = process.prior(noise_keys, x.shape[1:]).astype(x.dtype)
        return jnp.where(accepted, x, fresh), accepted

    def advance(state, row):
        done = jnp.all(state[1]) if permanent else False
        state = jax.lax.cond(done, lambda state, *_: state, step, state, *row)
        return state, state[0] if trajectory else None

    rows = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (last, _), states = jax.lax.scan(advance, (noise, given), rows)
    return jnp.concatenate([noise[None], states]) if trajectory else last


def confident(
    denoiser: Denoiser,
    process: DiscreteProcess,
    noise: Tokens,
    times: Float[Array, " times"],
    *,
    keys: Keys,
    trajectory: bool = False,
    threshold: Scalar = 0.95,
    temperature: Scale = 1.0,
    quota: Callable[..., Count] = per_step,
) -> Int[Array, " ..."]:
    """Accept tokens of probability above `threshold`, and at least a quota of the most probable.

    Nie et al. 2025, LLaDA, and LLaDA2's threshold. Accepted tokens stay. Under `Uniform` the others
    are drawn anew. The schedule sets the quota: `Linear` accepts equal parts, `Cosine` few tokens
    first.

    Args:
        noise: masks, or uniform noise. Under `Masked`, places that are already data stay.
        times: a grid that ends at the clean end, where everything is accepted.
        threshold: 1 leaves the quota alone.
        temperature: of the draws; 0 takes the most likely tokens. Their probabilities, which decide
            what is accepted, are those without it. With `guidance.temper` they are those with it.
        quota: `per_step`, `in_total`, or another function with their arguments.
        denoiser, process, keys, trajectory: as for `ancestral`.

    Raises:
        ValueError: the temperature is a negative number.
    """
    check_temperature(temperature)
    length = math.prod(noise.shape[1:])
    axes = range(1, noise.ndim)

    def rule(log_p, tokens, accepted, t, s):
        chosen = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
        count = quota(process, length, jnp.sum(accepted, axes), t, s)
        wanted = _smallest(jnp.where(accepted, jnp.inf, -chosen), count)
        sure = jnp.exp(chosen) > threshold
        return ~accepted & (wanted | sure | (process.sigma(s) == 0))

    distribution = lambda log_p, t: tempered(log_p, temperature, t)
    return _decode(
        rule, distribution, True, denoiser, process, noise, times, keys=keys, trajectory=trajectory
    )


def entropy_bounded(
    denoiser: Denoiser,
    process: DiscreteProcess,
    noise: Tokens,
    times: Float[Array, " times"],
    *,
    keys: Keys,
    trajectory: bool = False,
    bound: Scalar = 0.1,
) -> Int[Array, " ..."]:
    """Accept the places of least entropy whose tokens are nearly independent of each other.

    Ben-Hamu et al. 2025, EB-Sampler. Places come in the order of their entropies. Those are
    accepted before which the entropies sum to at most `bound`, in nats. This sum bounds their
    mutual information. At least one place is accepted, so as many steps as tokens suffice. Under
    `Masked` what is accepted stays. Under `Uniform` each step decides anew, and the others are
    drawn anew (DiffusionGemma, which takes a temperature from 0.8 down to 0.4: `guidance.temper`).

    Args:
        noise: masks, or uniform noise. Under `Masked`, places that are already data stay.
        times: a grid that ends at the clean end, where everything is accepted.
        bound: 0 accepts one place in a step, and with an exact denoiser samples are then exact.
        denoiser, process, keys, trajectory: as for `ancestral`.
    """

    permanent, distribution = isinstance(process, Masked), lambda log_p, t: log_p

    def rule(log_p, tokens, accepted, t, s):
        entropy = jnp.where(accepted & permanent, 0, _entropy(log_p))
        return nearly_independent(entropy, bound) | (process.sigma(s) == 0)

    return _decode(
        rule,
        distribution,
        permanent,
        denoiser,
        process,
        noise,
        times,
        keys=keys,
        trajectory=trajectory,
    )


def _entropy(log_p: Probabilities) -> Float[Array, " batch *shape"]:
    """Return the entropy of each place's token, in nats."""
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def _flat(values):
    return values.reshape(len(values), -1)


def _smallest(values, count):
    """Return where the `count` smallest values of each sample are."""
    ranks = jnp.argsort(jnp.argsort(_flat(values), 1), 1).reshape(values.shape)
    count = jnp.broadcast_to(count, len(values))
    return ranks < count.reshape(-1, *(1,) * (values.ndim - 1))


def nearly_independent(entropy, bound):
    """Return where the sum of all smaller entropies of the sample is at most the bound."""
    flat = _flat(entropy)
    order = jnp.argsort(flat, 1)
    rising = jnp.take_along_axis(flat, order, 1)
    smaller = jnp.pad(jnp.cumsum(rising[:, :-1], 1), ((0, 0), (1, 0)))
    accepted = smaller <= bound
    return jnp.take_along_axis(accepted, jnp.argsort(order, 1), 1).reshape(entropy.shape)
