"""Pairs of times (t, s), t the noisier one, between which a student learns to jump.

A distribution of pairs is a function `(key, process, count) -> (t, s)`, each `[count]`. Bind its
options with `functools.partial`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.times import TimeDistribution, independent

Times = Float[Array, " count"]
Pairs = Callable[[Key[Array, ""], Process, int], tuple[Times, Times]]


def ordered(
    key: Key[Array, ""],
    process: Process,
    count: int,
    times: TimeDistribution,
    diagonal: float = 0.0,
) -> tuple[Times, Times]:
    """Draw two times from one distribution, the larger as t; a share `diagonal` of pairs has s = t.

    Mean flows take `times.logit_normal(mean=−0.4)` and a diagonal of 0.75 (Geng et al. 2025).
    """
    both = times(process, independent(key, (2, count)))
    t, s = jnp.max(both, axis=0), jnp.min(both, axis=0)
    return t, jnp.where(first_share(count, diagonal), t, s)


def first_share(count: int, share: float) -> Bool[np.ndarray, " count"]:
    """Return which of `count` examples are among the first share of the batch, rounded down.

    The examples of a batch are in random order, so a fixed place needs no random choice.
    """
    return np.arange(count) < int(share * count + 1e-9)


def neighbours(
    key: Key[Array, ""], process: Process, count: int, grid: Float[Array, " times"], weights=None
) -> tuple[Times, Times]:
    """Draw a step of a grid from t to s (Song et al. 2023, algorithms 2 and 3).

    Args:
        grid: from the noise end to the clean end, as for samplers.
        weights: `[steps]`, proportional to the probability of each step (`log_normal_weights`);
            equal if None.
    """
    grid, steps = jnp.asarray(grid), len(grid) - 1  # NumPy's cannot be indexed under jit
    weights = jnp.ones(steps) if weights is None else weights
    index = jax.random.categorical(key, jnp.log(weights), shape=(count,))
    return grid[index], grid[index + 1]


def log_normal_weights(
    grid: Float[Array, " times"], mean: float = -1.1, deviation: float = 2.0
) -> Float[Array, " steps"]:
    """Return each step's share of N(mean, deviation²) in log(t) (Song & Dhariwal 2024, eq. 10)."""
    place = erf((jnp.log(grid) - mean) / (math.sqrt(2) * deviation))
    return place[:-1] - place[1:]


def consistency_steps(
    step: Int[Array, ""] | int, num_steps: int, first: int = 10, last: int = 1280
) -> Int[Array, ""]:
    """Return the number of steps of the grid at a training step (Song & Dhariwal 2024, eq. 11).

    The number doubles from `first` to `last` in equal parts of `num_steps` training steps. The last
    part has `last` steps, which may be less than a doubling. The paper's N is the number of times,
    which is one more.

    Raises:
        ValueError: not 1 ≤ first ≤ last.
    """
    if not 1 <= first <= last:
        raise ValueError(f"a grid has 1 <= first <= last steps; got first={first} and last={last}")
    doublings = (-(-last // first) - 1).bit_length()  # until first·2^doublings ≥ last
    part = max(1, num_steps // (doublings + 1))
    return jnp.minimum(first * 2 ** jnp.minimum(step // part, doublings), last)


def adaptive_steps(
    step: Int[Array, ""] | int, num_steps: int, first: int = 2, last: int = 150
) -> Int[Array, ""]:
    """Return N at a training step, the schedule of consistency training (Song et al. 2023, app. C).

    N = ⌈√(k/K·((last + 1)² − first²) + first²) − 1⌉ + 1 at step k of K. It ends at last + 1.
    """
    share = jnp.asarray(step) / num_steps
    return jnp.ceil(jnp.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1).astype(int) + 1


def adaptive_decay(
    steps: Int[Array, ""] | int, first: int = 2, decay: float = 0.9
) -> Float[Array, ""]:
    """Return the decay of the averaged student for N = `steps`, decay^(first/N) (Song et al. 2023).

    A finer grid needs a slower average. At the first N it is `decay`.
    """
    return decay ** (first / jnp.asarray(steps))


def easy(
    key: Key[Array, ""],
    process: Process,
    count: int,
    times: TimeDistribution,
    stage: Int[Array, ""] | int,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
) -> tuple[Times, Times]:
    """Draw t, and take s = t·(1 − n(t)/q^(stage + 1)), n(t) = 1 + k·sigmoid(−b·t).

    Tuning starts at stage 0, where most s are 0 and the loss is that of diffusion. Each stage
    narrows the steps by the factor q (Geng et al. 2025, ECT, equation 14).
    """
    t = times(process, independent(key, (count,)))
    return t, easy_end(t, stage, q, k, b)


def easy_end(t: Times, stage, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Times:
    """Return the s of `easy` for each t, at most (1 − 2⁻²⁰)·t: float32 rounds finer steps to 0."""
    step = (1 + k * jax.nn.sigmoid(-b * t)) / q ** (stage + 1)
    return t * (1 - jnp.clip(step, 2.0**-20, 1))
