"""Times to train on, as laws: quantile functions that turn u, uniform in (0, 1), into times of a process.

A law is a function `(process, u) -> t`, increasing in u, so that what is drawn is a matter of u (`independent` or
`stratified`), its density is 1/(dt/du), and every law can be shifted or corrected for. t = 0 is clean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, shift_time, to_domain

Variates = Float[Array, " *shape"]
Law = Callable[[Process, Variates], Variates]


def independent(key: Key[Array, ""], shape: tuple[int, ...]) -> Variates:
    """Independent uniform variates in (0, 1)."""
    return jnp.maximum(jax.random.uniform(key, shape), 2.0**-24)


def uniform(process: Process, u: Variates) -> Variates:
    """Equally likely over the process' domain."""
    return to_domain(process, u)


def logit_normal(process: Process, u: Variates, mean: float = 0.0, deviation: float = 1.0) -> Variates:
    """sigmoid(N(mean, deviation²)): most often in the middle, where prediction is hard (Esser et al. 2024, 3.1)."""
    return to_domain(process, jax.nn.sigmoid(mean + deviation * ndtri(u)))


def log_normal_sigma(process: Process, u: Variates, mean: float = -1.2, deviation: float = 1.2) -> Variates:
    """log(sigma/alpha) ~ N(mean, deviation²) (Karras et al. 2022, EDM, table 1)."""
    return process.time_at(-2 * (mean + deviation * ndtri(u)))


def shifted(law: Law, shift: float) -> Law:
    """The law of `shift_time(t, shift)`, t stretched over the unit interval, for t of another law."""

    def shifted_law(process, u):
        start, end = process.domain
        return to_domain(process, shift_time((law(process, u) - start) / (end - start), shift))

    return shifted_law
