"""The simple loss of diffusion and flow matching, how it depends on time, and the hybrid loss of learned variances."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Target, combine, split_variance
from genjax.diffusion.times import Law, independent

Weighting = Callable[[Process, Target, Float[Array, " batch"]], Float[Array, " batch"]]


def _evaluate(key, apply, x, conditioning, process, target, times, variates):
    """The network's output at a random time of each example, y, the times, and dt/du of their law."""
    time_key, noise_key = jax.random.split(key)
    u = variates(time_key, x.shape[:1])
    t, inverse_density = jax.jvp(lambda u: times(process, u), (u,), (jnp.ones_like(u),))
    z = jax.random.normal(noise_key, x.shape, x.dtype)
    x_t = process.corrupt(x, z, t)
    output = apply(expand(process.input_scale(t), x_t) * x_t, process.network_time(t), *conditioning)
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    return output, combine(process, target, x, z, t), t, inverse_density


def _mean(a):
    return jnp.mean(a, axis=range(1, a.ndim))


def _direction(a, b):
    """1 − cosine of the angle between channels, averaged over places."""
    # A network whose output starts at 0 would have an infinite gradient without what is added.
    unit = lambda a: a * jax.lax.rsqrt(jnp.sum(jnp.square(a), axis=-1, keepdims=True) + 1e-4)
    return _mean(1 - jnp.sum(unit(a) * unit(b), axis=-1))


def simple_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Float[Array, " batch *shape"],
    *conditioning,
    process: Process,
    target: Target,
    times: Law,
    variates: Callable = independent,
    weighting: Weighting | None = None,
    importance_corrected: bool = False,
    direction_weight: float = 0.0,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """w(t)·‖f(x_t, t) − y‖², t ~ p(t), z ~ N(0, I) (Ho et al. 2020, equation 14; Lipman et al. 2023, equation 9).

    Args:
        apply: the network with its parameters bound, `apply(x, t, *conditioning)`.
        times: the law of the times (`times.uniform`, …).
        variates: how its uniform variates are drawn (`times.independent` or `times.stratified`).
        weighting: w(process, target, t), of `weightings`; 1 if None.
        importance_corrected: divide by the law's density, so that whatever the law, the expected loss is the integral
            over t, and the law changes its variance alone.
        direction_weight: of 1 − cos(f, y) over channels, averaged over places, which is added to the squared error (Yao &
            Wang 2025, "LightningDiT": the velocity's direction).

    Returns:
        The loss per example, the squared error averaged over its dimensions, and the times drawn.
    """
    output, y, t, inverse_density = _evaluate(key, apply, x, conditioning, process, target, times, variates)
    loss = _mean(jnp.square(output - y))
    if direction_weight:
        loss += direction_weight * _direction(output, y)
    if weighting is not None:
        loss = weighting(process, target, t) * loss
    return (inverse_density * loss if importance_corrected else loss), t


def step_variances(
    process: Process, t: Float[Array, " *times"], s: Float[Array, " *times"]
) -> tuple[Float[Array, " *times"], Float[Array, " *times"]]:
    """The least and the largest variance that p(x_s | x_t) can have, s < t.

    The least is exact for data at a point, the largest for data N(0, I): β̃ and β where alpha² + sigma² = 1 (Ho et
    al. 2020, section 3.2). Between them lies the variance of a network that learns it (`targets.Prediction`).
    """
    new = -jnp.expm1(process.log_snr(t) - process.log_snr(s))
    before, after = (process.alpha(time) ** 2 + process.sigma(time) ** 2 for time in (s, t))
    return process.sigma(s) ** 2 * new, process.sigma(t) ** 2 * new * before / after


def step_divergence(
    process: Process,
    t: Float[Array, " batch"],
    s: Float[Array, " batch"],
    error: Float[Array, " batch *shape"],
    fraction: Float[Array, " batch *shape"],
) -> Float[Array, " batch *shape"]:
    """KL(q(x_s | x_t, x) ‖ p(x_s | x_t)) in nats for x̂ = x + `error` and a `Prediction.variance` of `fraction`.

    The means differ by √(least·(SNR_s − SNR_t))·error; the rest is the formula for two Gaussians.
    """
    least, largest = step_variances(process, t, s)
    snr = jnp.exp(process.log_snr(s))
    gained = -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * snr  # SNR_s − SNR_t
    larger = fraction * expand(jnp.log(largest / least), error)  # log of p's variance over q's
    return (larger + jnp.expm1(-larger) + jnp.exp(-larger) * expand(gained, error) * jnp.square(error)) / 2


def discretized_nll(
    x: Float[Array, " *shape"], mean: Float[Array, " *shape"], deviation: Float[Array, " *shape"]
) -> Float[Array, " *shape"]:
    """−log of the mass of N(mean, deviation²) around x, one of 256 levels in [−1, 1], in nats.

    The outermost levels have the tails (Ho et al. 2020, equation 13).
    """
    centred, half = x - mean, 1 / 255
    distance = jnp.abs(
        centred
    )  # by symmetry; so that both ends of the interval lie where log Φ has its digits
    above, below = (half - distance) / deviation, (-half - distance) / deviation
    inside = log_ndtr(above) + jnp.log(-jnp.expm1(log_ndtr(below) - log_ndtr(above)))
    tail = log_ndtr((half - jnp.sign(x) * centred) / deviation)
    return -jnp.where(jnp.abs(x) > 0.999, tail, inside)


def bound_step(
    process: Process,
    x: Float[Array, " batch *shape"],
    t: Float[Array, " batch"],
    error: Float[Array, " batch *shape"],
    fraction: Float[Array, " batch *shape"],
    num_steps: int = 1000,
) -> Float[Array, " batch"]:
    """The term of the variational bound whose step starts at t, in bits per dimension (Nichol & Dhariwal 2021, 3.1).

    It is the divergence of a step of 1/num_steps of all times or, where that step would end within half a step of the
    clean end, the likelihood of x in 256 levels; there the least variance is that of the step before, as it would be 0.

    Args:
        error, fraction: as in `step_divergence`.
    """
    step = (process.domain[1] - process.clean_end) / num_steps
    last = t < process.clean_end + 1.5 * step
    # One step earlier where t is last, so that both branches, and their gradients, are finite.
    start, end = jnp.where(last, t + step, t), jnp.where(last, t, t - step)
    divergence = step_divergence(process, start, end, error, fraction)
    least, _ = step_variances(process, start, end)
    _, largest = step_variances(process, t, jnp.full_like(t, process.clean_end))
    least, largest = expand(jnp.log(least), x), expand(jnp.log(largest), x)
    nll = discretized_nll(x, x + error, jnp.exp((least + fraction * (largest - least)) / 2))
    return _mean(jnp.where(expand(last, x), nll, divergence)) / math.log(2)


def hybrid_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Float[Array, " batch *shape"],
    *conditioning,
    process: Process,
    target: Target,
    times: Law,
    variates: Callable = independent,
    weighting: Weighting | None = None,
    bound_weight: float = 0.001,
    num_steps: int = 1000,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """`simple_loss` + bound_weight·L_vlb for a network with learned variance (Nichol & Dhariwal 2021, equation 16).

    L_vlb, in bits per dimension, is estimated by num_steps times its term at t (`bound_step`), and teaches the variance
    alone: no gradient reaches the prediction through it. The network's output is that of `targets.split_variance`.
    """
    output, y, t, _ = _evaluate(key, apply, x, conditioning, process, target, times, variates)
    prediction, fraction = split_variance(output)
    loss = _mean(jnp.square(prediction - y))
    if weighting is not None:
        loss = weighting(process, target, t) * loss
    c, d = target(process, t)
    to_clean = process.sigma(t) / (c * process.sigma(t) - d * process.alpha(t))  # x̂ − x of f − y
    error = jax.lax.stop_gradient(expand(to_clean, x) * (prediction - y))
    return loss + bound_weight * num_steps * bound_step(process, x, t, error, fraction, num_steps), t


def sums_by_time(
    losses: Float[Array, " batch"], t: Float[Array, " batch"], process: Process, num_bins: int
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """Sums of losses, and how many there are, in equal parts of the process' domain of t."""
    start, end = process.domain
    place = jnp.clip(num_bins * (t - start) / (end - start), 0, num_bins - 1).astype(int)
    in_bin = jax.nn.one_hot(place, num_bins)
    return jnp.sum(losses[:, None] * in_bin, axis=0), jnp.sum(in_bin, axis=0)
