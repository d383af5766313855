"""Times: distributions p(t) to train on, and grids to sample on. Both live in [0, 1], t = 0 clean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process

TimeDistribution = Callable[[Key[Array, ""], tuple[int, ...]], Float[Array, " *shape"]]


def uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, " *shape"]:
    return jax.random.uniform(key, shape)


def logit_normal(
    key: Key[Array, ""], shape: tuple[int, ...], mean: float = 0.0, deviation: float = 1.0
) -> Float[Array, " *shape"]:
    """sigmoid(N(mean, deviation²)): most often in the middle, where prediction is hard (Esser et al. 2024, 3.1)."""
    return jax.nn.sigmoid(mean + deviation * jax.random.normal(key, shape))


def shift_time(t: Float[Array, " *shape"], shift: float | Float[Array, ""]) -> Float[Array, " *shape"]:
    """shift·t / (1 + (shift − 1)·t): towards noise for shift > 1 (Esser et al. 2024, equation 23).

    For rectified flow it lowers the log-SNR by 2·log(shift) at every t. Higher resolutions, whose
    neighbouring pixels correlate more, want larger shifts; shift = √(pixels / pixels at shift 1).
    """
    return t / (t + (1 - t) / shift)  # in this form the ends stay exactly 0 and 1


def shifted(distribution: TimeDistribution, shift: float) -> TimeDistribution:
    """The distribution of `shift_time(t, shift)` for t of another distribution."""
    return lambda key, shape: shift_time(distribution(key, shape), shift)


def to_domain(process: Process, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Stretches t in [0, 1] over the process' domain."""
    start, end = process.domain
    return start + (end - start) * t


def uniform_grid(process: Process, num_steps: int, shift: float = 1.0) -> Float[Array, " times"]:
    """The `num_steps` + 1 times of a sampler with equal steps, noise end first, shifted by `shift_time`.

    Raises:
        ValueError: `num_steps` is not a positive integer.
    """
    if num_steps < 1:
        raise ValueError(f"sampling takes at least one step; got num_steps={num_steps}")
    return to_domain(process, shift_time(jnp.linspace(1.0, 0.0, num_steps + 1), shift))
