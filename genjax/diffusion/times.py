"""Times to train on, as laws: quantile functions that turn u, uniform in (0, 1), into times of a process.

A law is a function `(process, u) -> t`, increasing in u, so that what is drawn is a matter of u (`independent` or
`stratified`), its density is 1/(dt/du), and every law can be shifted or corrected for. t = 0 is clean. Laws given on
the unit interval are stretched over the process' domain.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, shift_time, to_domain

Variates = Float[Array, " *shape"]
Law = Callable[[Process, Variates], Variates]


def independent(key: Key[Array, ""], shape: tuple[int, ...]) -> Variates:
    """Independent uniform variates in (0, 1)."""
    return jnp.maximum(jax.random.uniform(key, shape), 2.0**-24)


def stratified(key: Key[Array, ""], shape: tuple[int, ...]) -> Variates:
    """(u + i/n) mod 1, the i-th of n, with one u for all (Kingma et al. 2021, VDM, appendix: the
    low-discrepancy sampler).

    Each is uniform in (0, 1), and each n-th part of the interval holds exactly one: where a loss varies smoothly with
    time, what time adds to the variance of its mean falls as 1/n² instead of 1/n.
    """
    n = math.prod(shape)
    u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
    return jnp.maximum(u, 2.0**-24).reshape(shape)


def density(law: Law, process: Process, u: Variates) -> Variates:
    """The density of a law at the times t = law(process, u): 1/(dt/du)."""
    return 1 / jax.jvp(lambda u: law(process, u), (u,), (jnp.ones_like(u),))[1]


def uniform(process: Process, u: Variates) -> Variates:
    """Equally likely over the process' domain."""
    return to_domain(process, u)


def logit_normal(
    process: Process, u: Variates, mean: float = 0.0, deviation: float = 1.0
) -> Variates:
    """sigmoid(N(mean, deviation²)): most often in the middle, where prediction is hard (Esser et al. 2024, eq. 19).

    Its density falls to zero at the ends faster than any power of t, so that the importance-corrected loss has
    infinite variance unless the weighting falls likewise; `mode` and `cosmap` can be corrected for.
    """
    return to_domain(process, jax.nn.sigmoid(mean + deviation * ndtri(u)))


def mode(process: Process, u: Variates, scale: float = 1.29) -> Variates:
    """u + scale·(u − sin²(πu/2)): the middle most often for a scale above 0, the ends below (Esser et al. 2024, eq. 20).

    Unlike `logit_normal` it keeps a density above zero at both ends, 1/(1 + scale); in the middle it is
    1/(1 + scale·(1 − π/2)). The paper's function falls in u; this is its value at 1 − u, the same law.

    Raises:
        ValueError: `scale` is outside [−1, 2/(π − 2)] = [−1, 1.7519…], where the function increases.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"mode takes a scale between -1 and 2/(π − 2) = 1.7519; got {scale}")
    return to_domain(process, u + scale * (u - jnp.sin(jnp.pi / 2 * u) ** 2))


def cosmap(process: Process, u: Variates) -> Variates:
    """1 − 1/(1 + tan(πu/2)), of density 2/(π − 2πt + 2πt²) (Esser et al. 2024, equations 21 and 22).

    It gives rectified flow the log-SNRs of the cosine process at uniform times.
    """
    sine, cosine = jnp.sin(jnp.pi / 2 * u), jnp.sin(jnp.pi / 2 * (1 - u))
    return to_domain(process, sine / (sine + cosine))  # the tangent has no value at u = 1


def uniform_log_snr(process: Process, u: Variates, lowest: float = -15.0) -> Variates:
    """Equally likely log-SNRs between the domain's ends, of which none is below `lowest`.

    A bound from −15 instead of −∞ is looser by 2e-7 nats per dimension, for data of deviation 1.

    Raises:
        ValueError: sigma is 0 at the clean end of the domain.
    """
    start, end = process.domain
    with jax.ensure_compile_time_eval():  # a domain is static
        highest, least = (float(process.log_snr(jnp.asarray(t))) for t in (start, end))
    if highest == math.inf:
        raise ValueError(
            f"the log-SNR is infinite where sigma = 0, and {type(process).__name__} has times there, at "
            f"{start:g}; start the domain later, as in {type(process).__name__}(domain=(1e-3, …))"
        )
    t = process.time_at(highest + (max(least, lowest) - highest) * u)
    return jnp.clip(t, start, end)  # rounding at the ends


def log_normal_sigma(
    process: Process, u: Variates, mean: float = -1.2, deviation: float = 1.2
) -> Variates:
    """log(sigma/alpha) ~ N(mean, deviation²) (Karras et al. 2022, EDM, table 1), given that t is in the domain.

    The condition cuts 1.7e-5 of the law from EDM's domain of 0.002 to 80, and nothing from rectified flow's.
    """
    start, end = process.domain
    # Where log(sigma/alpha) of the two ends lies among the normal law's quantiles: 0 and 1 if it is infinite.
    ends = ndtr((-process.log_snr(jnp.asarray([start, end], u.dtype)) / 2 - mean) / deviation)
    t = process.time_at(-2 * (mean + deviation * ndtri(ends[0] + (ends[1] - ends[0]) * u)))
    return jnp.clip(t, start, end)  # rounding in the tails


def shifted(law: Law, shift: float) -> Law:
    """The law of `shift_time(t, shift)`, t stretched over the unit interval, for t of another law."""

    def shifted_law(process, u):
        start, end = process.domain
        return to_domain(process, shift_time((law(process, u) - start) / (end - start), shift))

    return shifted_law
