"""Losses of discrete diffusion: variational bounds, the score entropy and the cross-entropy.

Every loss is in nats per token and is called as `loss(key, apply, x, *conditioning, process=…)`. It
draws times and x_t, evaluates the network once, and returns the loss at each time and the times.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.discrete.processes import (
    DiscreteProcess,
    Probabilities,
    Tokens,
    score_entropy,
)
from genjax.diffusion.discrete.targets import Target, predict, score
from genjax.diffusion.processes import expand
from genjax.diffusion.times import TimeDistribution, independent

Losses = Float[Array, " batch *blocks"]
Weighting = Callable[[DiscreteProcess, Losses], Losses]


def _times(key, x, process, distribution, variates, block_length):
    """Return times, dt/du of their distribution, and the times of all tokens.

    Times are `[batch]`, or `[batch blocks]` with a block length.

    Raises:
        ValueError: x does not divide into the blocks.
    """
    u = variates(key, shape_of_times(x, block_length))
    t, slope = jax.jvp(lambda u: distribution(process, u), (u,), (jnp.ones_like(u),))
    return t, slope, of_tokens(t, x, block_length)


def shape_of_times(x: Tokens, block_length: int | None) -> tuple[int, ...]:
    """Return `(batch,)`, or `(batch, blocks)` where the tokens of a block share a time.

    Raises:
        ValueError: x does not divide into the blocks.
    """
    if block_length is None:
        return x.shape[:1]
    length = math.prod(x.shape[1:])
    if length % block_length:
        raise ValueError(
            f"blocks of {block_length} tokens do not divide a sequence of {length}; change "
            "block_length or the sequence"
        )
    return len(x), length // block_length


def of_tokens(
    times: Float[Array, " batch *blocks"], x: Tokens, block_length: int | None
) -> Float[Array, " batch *times"]:
    """Return each block's time at its tokens in raster order, or times `[batch]` as they are."""
    return times if block_length is None else jnp.repeat(times, block_length, 1).reshape(x.shape)


def _mean(each, like):
    """Return the mean loss of the tokens that share a time."""
    grouped = each.reshape(*like.shape, -1)
    return jnp.mean(grouped, -1)


def bound_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tokens,
    *conditioning,
    process: DiscreteProcess,
    target: Target,
    times: TimeDistribution,
    variates: Callable = independent,
    block_length: int | None = None,
) -> tuple[Losses, Losses]:
    """Compute the continuous-time bound on −log p(x) at random t, in nats per token.

    `DiscreteProcess.divergence_rate` names the papers. The expected loss is the same integral for
    every distribution of times, and for `Masked` also for every schedule.

    Args:
        apply: the network with its parameters bound, called as in `targets.predict`.
        x: data `[batch …]`.
        times: the distribution of the times (`diffusion.uniform`, …).
        variates: how the distribution's uniform variates are drawn. `diffusion.stratified` draws
            the antithetic times of MD4. Those of MDLM have the same strata, but each time has an
            offset of its own.
        block_length: None, or the number of tokens that share a time, in raster order. With blocks
            the bound is that of block diffusion (Arriola et al. 2025), if the network sees the
            clean tokens of earlier blocks: give it x as conditioning. The network's times then have
            the shape of x.

    Returns:
        The loss at each time, `[batch]` or `[batch blocks]`, and the times.

    Raises:
        ValueError: x does not divide into the blocks.
    """
    time_key, noise_key = jax.random.split(key)
    t, slope, each_t = _times(time_key, x, process, times, variates, block_length)
    x_t = process.corrupt(noise_key, x, each_t)
    log_p = predict(apply, process, target)(x_t, each_t, *conditioning)
    return slope * _mean(process.divergence_rate(x, x_t, log_p, each_t), t), t


def simple_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tokens,
    *conditioning,
    process: DiscreteProcess,
    target: Target,
    times: TimeDistribution,
    variates: Callable = independent,
    weighting: Weighting | None = None,
    block_length: int | None = None,
) -> tuple[Losses, Losses]:
    """Compute w(t)·(−log p(x | x_t)) at random t, the cross-entropy of discrete flow matching.

    Gat et al. 2024; Campbell et al. 2024. Under `Masked`, tokens that are
    not masked are known and add 0.

    Args:
        weighting: w(process, t). None means 1.
        key, apply, x, process, target, times, variates, block_length: as for `bound_loss`.

    Returns and raises what `bound_loss` does.
    """
    time_key, noise_key = jax.random.split(key)
    t, _, each_t = _times(time_key, x, process, times, variates, block_length)
    x_t = process.corrupt(noise_key, x, each_t)
    log_p = predict(apply, process, target)(x_t, each_t, *conditioning)
    loss = _mean(cross_entropy(log_p, x), t)
    return loss if weighting is None else weighting(process, t) * loss, t


def score_entropy_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tokens,
    *conditioning,
    process: DiscreteProcess,
    target: Target = score,
    times: TimeDistribution,
    variates: Callable = independent,
) -> tuple[Losses, Losses]:
    """Compute the denoising score entropy, the bound of a network that predicts log-scores.

    Lou et al. 2024, SEDD.

    Args:
        apply: returns the logarithms of the scores of all tokens, `[batch … V]`.
        target: `targets.score`, since the loss compares scores.
        key, x, process, times, variates: as for `bound_loss`.

    Returns what `bound_loss` does.

    Raises:
        ValueError: the target is another one.
    """
    if target is not score:
        raise ValueError(
            f"score_entropy_loss trains a network of scores, and the target is {target.__name__}; "
            "take the target score, or the loss bound_loss"
        )
    time_key, noise_key = jax.random.split(key)
    t, slope, _ = _times(time_key, x, process, times, variates, None)
    x_t = process.corrupt(noise_key, x, t)
    output = apply(x_t, t, *conditioning)
    log_scores = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    true = process.scores(process.log_certain(x), x_t, t)[..., : process.vocabulary_size]
    rate = expand(process.noise_rate(t), x_t) * process.noise_distribution[x_t]
    return slope * _mean(rate * score_entropy(log_scores, true, x_t), t), t


def hybrid_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tokens,
    *conditioning,
    process: DiscreteProcess,
    target: Target,
    times: TimeDistribution,
    variates: Callable = independent,
    num_steps: int = 1000,
    cross_entropy_weight: float = 1.0,
) -> tuple[Losses, Losses]:
    """Compute the bound of num_steps steps plus a cross-entropy (Austin et al. 2021, equation 5).

    The bound sums `step_divergence` over the steps. It is estimated by that of one step, in which
    the drawn time lies.

    The authors' programs take the mean over the steps instead of the sum. So their λ is to be
    multiplied by num_steps: 0.001 for images and 0.01 for text, with 1000 steps, are weights of 1
    and 10.

    Args:
        cross_entropy_weight: λ of −log p(x | x_t).
        key, apply, x, process, target, times, variates: as for `bound_loss`.

    Returns what `bound_loss` does.
    """
    time_key, noise_key = jax.random.split(key)
    t, slope, _ = _times(time_key, x, process, times, variates, None)
    step = (process.domain[1] - process.clean_end) / num_steps
    number = jnp.maximum(jnp.ceil((t - process.clean_end) / step), 1)
    t, s = (process.clean_end + step * n for n in (number, number - 1))
    x_t = process.corrupt(noise_key, x, t)
    log_p = predict(apply, process, target)(x_t, t, *conditioning)
    divergence = step_divergence(process, x, x_t, log_p, t, s)
    bound = slope / step * _mean(divergence, t)
    return bound + cross_entropy_weight * _mean(cross_entropy(log_p, x), t), t


def cross_entropy(log_p: Probabilities, x: Tokens) -> Float[Array, " batch *shape"]:
    """Return −log p(x | x_t) of each token, in nats."""
    return -jnp.take_along_axis(log_p, x[..., None], -1)[..., 0]


def step_divergence(
    process: DiscreteProcess,
    x: Tokens,
    x_t: Tokens,
    log_p: Probabilities,
    t: Float[Array, " *times"],
    s: Float[Array, " *times"],
) -> Float[Array, " batch *shape"]:
    """Return KL(q(x_s | x_t, x) ‖ p(x_s | x_t)) in nats for each token.

    Austin et al. 2021, D3PM, equation 1. For s at the clean end it is −log p(x | x_t).
    """
    q, p = (process.posterior(each, x_t, t, s) for each in (process.log_certain(x), log_p))
    possible = q > 0
    log_ratio = jnp.log(jnp.where(possible, q, 1)) - jnp.log(jnp.where(possible, p, 1))
    return jnp.sum(q * log_ratio, -1)
