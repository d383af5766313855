"""Distributions of training times: quantile functions from u, uniform in (0, 1), to times.

A distribution is a function `(process, u) -> t`, increasing in u. So `independent` or `stratified`
alone decide how u is drawn. The density of a distribution is 1/(dt/du), and every distribution can
be shifted or corrected for. Distributions given on the unit interval are stretched over the
process' domain. Time 0 is clean.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, shift_time, to_domain

Variates = Float[Array, " *shape"]
TimeDistribution = Callable[[Process, Variates], Variates]


def independent(key: Key[Array, ""], shape: tuple[int, ...]) -> Variates:
    """Draw independent uniform variates in (0, 1)."""
    return jnp.maximum(jax.random.uniform(key, shape), 2.0**-24)


def stratified(key: Key[Array, ""], shape: tuple[int, ...]) -> Variates:
    """Draw n uniform variates (u + i/n) mod 1, i = 0, …, n − 1, with one u for all.

    This is the low-discrepancy sampler of VDM (Kingma et al. 2021, appendix I.1). Each variate
    is uniform in (0, 1), and each n-th part of the interval holds exactly one. Where a loss varies
    smoothly with time, the variance that time adds to the mean loss falls as 1/n² instead of 1/n.

    Variates `[batch frames]` are shuffled among the examples, each frame by itself. Otherwise the
    frames of an example would have nearly the same time.
    """
    n = math.prod(shape)
    part = jnp.arange(n).reshape(shape)
    if len(shape) > 1:
        part = jax.random.permutation(jax.random.fold_in(key, 1), part, independent=True)
    return jnp.maximum((jax.random.uniform(key) + part / n) % 1, 2.0**-24)


def density(distribution: TimeDistribution, process: Process, u: Variates) -> Variates:
    """Return the density 1/(dt/du) of a distribution at the times t = distribution(process, u)."""
    return 1 / jax.jvp(lambda u: distribution(process, u), (u,), (jnp.ones_like(u),))[1]


def uniform(process: Process, u: Variates) -> Variates:
    """Return times that are equally likely over the process' domain."""
    return to_domain(process, u)


def _check_deviation(deviation: float | Float[Array, "..."]) -> None:
    """Raise ValueError unless a deviation is traced, or positive, so that times increase."""
    if not isinstance(deviation, jax.core.Tracer) and not np.all(np.asarray(deviation) > 0):
        raise ValueError(f"deviation is above 0, as a standard deviation is; got {deviation}")


def logit_normal(
    process: Process,
    u: Variates,
    mean: float | Float[Array, ""] = 0.0,
    deviation: float | Float[Array, ""] = 1.0,
) -> Variates:
    """Return times sigmoid(N(mean, deviation²)) (Esser et al. 2024, equation 19).

    The middle times, where prediction is hard, are the most frequent. The density falls to zero at
    the ends faster than any power of t. So the importance-corrected loss has infinite variance
    unless the weighting falls as fast. `mode` and `cosmap` do not have this problem.

    Raises:
        ValueError: `deviation` is not positive.
    """
    _check_deviation(deviation)
    return to_domain(process, jax.nn.sigmoid(mean + deviation * ndtri(u)))


def mode(process: Process, u: Variates, scale: float = 1.29) -> Variates:
    """Return times u + scale·(u − sin²(πu/2)) (Esser et al. 2024, equation 20).

    The middle times are the most frequent for a scale above 0, the ends for a scale below 0. In
    contrast to `logit_normal`, the density stays above zero at both ends, where it is 1/(1 +
    scale). In the middle it is 1/(1 + scale·(1 − π/2)). The paper's function falls in u; this is
    its value at 1 − u, the same distribution.

    Raises:
        ValueError: `scale` is outside [−1, 2/(π − 2)] = [−1, 1.7519…], where the function
            increases.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"mode takes a scale between -1 and 2/(π − 2) = 1.7519, got {scale}")
    return to_domain(process, u + scale * (u - jnp.sin(jnp.pi / 2 * u) ** 2))


def cosmap(process: Process, u: Variates) -> Variates:
    """Return times 1 − 1/(1 + tan(πu/2)) (Esser et al. 2024, equations 21 and 22).

    Their density is 2/(π − 2πt + 2πt²). They give rectified flow the log-SNRs that the cosine
    process has at uniform times.
    """
    sine, cosine = jnp.sin(jnp.pi / 2 * u), jnp.sin(jnp.pi / 2 * (1 - u))
    # The sine and cosine form has a value at u = 1, where the tangent has none.
    return to_domain(process, sine / (sine + cosine))


def uniform_log_snr(process: Process, u: Variates, lowest: float = -15.0) -> Variates:
    """Return times with equally likely log-SNRs between the domain's ends, none below `lowest`.

    A bound that starts at −15 instead of −∞ is looser by at most SNR/2 = 2e-7 nats per dimension,
    for data of mean square 1.

    Raises:
        ValueError: sigma is 0 at the clean end of the domain.
    """
    start, end = process.domain
    with jax.ensure_compile_time_eval():  # concrete: a domain is static
        highest, least = (float(process.log_snr(jnp.asarray(t))) for t in (start, end))
    if highest == math.inf:
        raise ValueError(
            f"the domain of {type(process).__name__} starts at {start:g}, where sigma = 0 and the "
            f"log-SNR is infinite; start it later, as in {type(process).__name__}(domain=(1e-3, …))"
        )
    t = process.time_at(highest + (max(least, lowest) - highest) * u)
    return jnp.clip(t, start, end)  # rounding can leave the domain at the ends


def log_normal_sigma(
    process: Process,
    u: Variates,
    mean: float | Float[Array, ""] = -1.2,
    deviation: float | Float[Array, ""] = 1.2,
) -> Variates:
    """Return times with log(sigma/alpha) ~ N(mean, deviation²), given that t is in the domain.

    This is EDM's distribution (Karras et al. 2022, table 1). The condition cuts 1.6e-5 of the
    distribution off EDM's domain of 0.002 to 80, and nothing off rectified flow's.

    Raises:
        ValueError: `deviation` is not positive.
    """
    _check_deviation(deviation)
    start, end = process.domain
    # The normal distribution's probability below log(sigma/alpha) of each end of the domain. It is
    # 0 or 1 where the level is infinite.
    levels = -process.log_snr(jnp.asarray([start, end], jnp.result_type(u, float))) / 2
    ends = ndtr((levels - mean) / deviation)
    t = process.time_at(-2 * (mean + deviation * ndtri(ends[0] + (ends[1] - ends[0]) * u)))
    return jnp.clip(t, start, end)  # rounding can leave the domain in the tails


def karras(process: Process, u: Variates, rho: float = 7.0) -> Variates:
    """Return times whose levels sigma/alpha have equally likely rho-th roots.

    Equal steps in u are the grid of Karras et al. 2022, equation 5, between the domain's ends,
    which must be finite.

    Raises:
        ValueError: alpha is 0 at the noise end of the domain.
    """
    with jax.ensure_compile_time_eval():  # concrete: a domain is static
        levels = jnp.exp(-process.log_snr(jnp.asarray(process.domain)) / 2)
        low, high = (float(level) ** (1 / rho) for level in levels)
    if high == math.inf:
        raise ValueError(
            f"the domain of {type(process).__name__} ends at {process.domain[1]:g}, where alpha = "
            "0 and sigma/alpha is infinite; end it earlier, or take another distribution"
        )
    level = (low + u * (high - low)) ** rho
    return jnp.clip(process.time_of(jnp.ones_like(level), level), *process.domain)


def shifted(distribution: TimeDistribution, shift: float) -> TimeDistribution:
    """Make the distribution of `shift_time(t, shift)`, where t is distributed as given.

    The domain is stretched over the unit interval for the shift.
    """

    def shifted_distribution(process, u):
        start, end = process.domain
        return to_domain(
            process, shift_time((distribution(process, u) - start) / (end - start), shift)
        )

    return shifted_distribution
