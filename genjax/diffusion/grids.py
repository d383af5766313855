"""Time grids for sampling: `(process, num_steps, …) -> times`.

A grid has num_steps + 1 times, noise end first, and ends at the process' clean end. For EDM and
tables this end (sigma = 0) lies outside the domain that the network knows. Their grids have
num_steps times in the domain, followed by the clean end.

Some grids space the noise level sigma/alpha from `sigma_max` to `sigma_min`. None takes the levels
at the ends of the domain. Where those are infinite or zero (rectified flow), both must be given.
The grid still runs from end to end: the noise end replaces sigma_max, and one more step leads from
sigma_min to the clean end.

Arguments are Python numbers; only `shift` may be traced. A grid raises ValueError if `num_steps` is
not a positive integer, or if steps or levels lie outside the process' domain.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts when they are used: `scipy.special` is slow to import
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process, shift_time, to_domain

Times = Float[Array, " times"]
Shift = float | Float[Array, ""]


def _check_steps(num_steps) -> None:
    """Raise ValueError if `num_steps` is not a positive integer."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"num_steps is a whole number, at least 1; got num_steps={num_steps}")


def _unit_times(process: Process, num_steps) -> np.ndarray:
    """Return equal steps from 1 to 0: the grid's times in the domain, before shift and stretch."""
    _check_steps(num_steps)
    return np.linspace(1.0, 0.0, num_steps + (process.clean_end == process.domain[0]))


def _append_clean_end(process: Process, times: Float[Array, " in_domain"]) -> Times:
    """Return the times followed by the clean end, unless they already end there."""
    return times if process.clean_end == process.domain[0] else jnp.append(times, process.clean_end)


def uniform_grid(process: Process, num_steps: int, shift: Shift = 1.0) -> Times:
    """Return equal steps in t, shifted by `shift_time`.

    For rectified flow this is the grid of FLUX, with shift = `resolution_shift(tokens)` (schnell:
    1). It is also diffusers' grid of sigmas linspace(1, 1/n, n).
    """
    return _append_clean_end(
        process, to_domain(process, shift_time(jnp.asarray(_unit_times(process, num_steps)), shift))
    )


def resolution_shift(tokens: int) -> float:
    """Return FLUX's shift exp(mu), with mu linear in the number of image tokens.

    mu is 0.5 at 256 tokens and 1.15 at 4096.
    """
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def staggered_grid(times: Times, delays: Sequence[int]) -> Float[Array, " staggered frames"]:
    """Return a grid `[staggered frames]` in which frame i walks `times` delays[i] steps later.

    Before and after its walk, a frame stays at the first or the last time. So the frames become
    clean one after the other (Chen et al. 2024, Diffusion Forcing: a "pyramid"). A frame with a
    delay of −steps is clean from the start: it is a given frame. The grid has as many steps as the
    frame that ends last needs.
    """
    delays = np.asarray(delays)
    steps = len(times) - 1 + delays.max()
    return times[np.clip(np.arange(steps + 1)[:, None] - delays, 0, len(times) - 1)]


def floored_grid(
    process: Process, num_steps: int, shift: Shift = 1.0, floor: Shift = 0.001
) -> Times:
    """Return num_steps equally spaced times from 1 to `floor`, shifted once, and the clean end.

    With the floor 1/1000 this is the grid of diffusers' flow matching with a dynamic shift and no
    sigmas.

    Raises:
        ValueError: `floor` is not between 0 and 1.
    """
    _check_steps(num_steps)
    if not isinstance(floor, jax.core.Tracer) and not 0 < floor < 1:
        raise ValueError(f"floor is a fraction of the domain, between 0 and 1; got {floor}")
    times = to_domain(process, shift_time(jnp.linspace(1.0, floor, num_steps), shift))
    return jnp.append(times, process.clean_end)


def stable_diffusion_3_grid(process: Process, num_steps: int, shift: Shift = 3.0) -> Times:
    """Return `floored_grid` with its floor 1/1000 shifted twice (Esser et al. 2024).

    This is the grid of Stability's program, and diffusers' for a static shift.
    """
    return floored_grid(process, num_steps, shift, shift_time(jnp.asarray(0.001), shift))


def _table_grid(process: Process, steps: np.ndarray, table_size: int) -> Times:
    """Return the times steps/table_size and the clean end. Steps count from 1 to table_size."""
    start, end = process.domain
    if end != 1 or steps[0] > table_size or steps[-1] / table_size < start * (1 - 1e-6):
        raise ValueError(
            f"a table of {table_size} steps has times 1/{table_size} to 1; got steps {steps[-1]} "
            f"to {steps[0]} for {type(process).__name__}, whose domain is {start:g} to {end:g}: "
            "change table_size, offset or process"
        )
    return jnp.asarray(np.append(steps / table_size, process.clean_end))


def _check_table(num_steps, table_size: int) -> None:
    """Raise ValueError unless `num_steps` is a positive integer, at most the size of the table."""
    _check_steps(num_steps)
    if num_steps > table_size:
        raise ValueError(
            f"num_steps is at most the size of the table, {table_size}; got num_steps={num_steps}"
        )


def _check_starts_from_noise(num_steps, name: str) -> None:
    """Raise ValueError if the one step of a grid would start from the first tabulated step."""
    if num_steps == 1:
        raise ValueError(
            f"num_steps=1 of {name} starts from the table's least noise, so a sample would be "
            "noise: take two steps or more, or trailing_grid"
        )


def trailing_grid(process: Process, num_steps: int, table_size: int = 1000) -> Times:
    """Return steps round(N − k·N/n), k = 0 … n − 1, of N tabulated steps.

    Lin et al. 2024, table 2.

    The last tabulated step is included.
    """
    _check_table(num_steps, table_size)
    steps = np.round(table_size * np.arange(num_steps, 0, -1) / num_steps).astype(int)
    return _table_grid(process, steps, table_size)


def leading_grid(
    process: Process, num_steps: int, table_size: int = 1000, offset: int = 0
) -> Times:
    """Return steps 1 + k·⌊N/n⌋ + offset of N tabulated steps.

    Lin et al. 2024, table 2.

    The last tabulated step is left out. This is DDIM's own grid, and with offset 1 Stable
    Diffusion's.

    Raises:
        ValueError: there is one step, which diffusers starts from the table's least noise.
    """
    _check_table(num_steps, table_size)
    _check_starts_from_noise(num_steps, "leading_grid")
    steps = 1 + offset + np.arange(num_steps - 1, -1, -1) * (table_size // num_steps)
    return _table_grid(process, steps, table_size)


def linspace_grid(process: Process, num_steps: int, table_size: int = 1000) -> Times:
    """Return the tabulated steps nearest to n equal steps from N to 1.

    Lin et al. 2024, table 2.

    diffusers' Euler methods do not round to tabulated steps: `uniform_grid` does the same.

    Raises:
        ValueError: as of `leading_grid`.
    """
    _check_table(num_steps, table_size)
    _check_starts_from_noise(num_steps, "linspace_grid")
    steps = 1 + np.round(np.linspace(0, table_size - 1, num_steps))[::-1].astype(int)
    return _table_grid(process, steps, table_size)


def beta_grid(process: Process, num_steps: int, alpha: float = 0.6, beta: float = 0.6) -> Times:
    """Return quantiles of Beta(alpha, beta) in t, at equal steps of probability (Lee et al. 2024).

    The grid is denser at both ends.
    """
    quantiles = scipy.special.betaincinv(alpha, beta, _unit_times(process, num_steps))
    return _append_clean_end(process, to_domain(process, jnp.asarray(quantiles)))


def _level(process: Process, t: float) -> float:
    """Return sigma/alpha as a number. A domain is static, so this works while tracing too."""
    with jax.ensure_compile_time_eval():
        alpha, sigma = float(process.alpha(jnp.asarray(t))), float(process.sigma(jnp.asarray(t)))
    return sigma / alpha if alpha else math.inf


def _times_of_levels(
    process: Process,
    num_steps,
    spacing: Callable[[np.ndarray, float, float], np.ndarray],
    sigma_min: float | None,
    sigma_max: float | None,
) -> Times:
    """Return the times of the noise levels spacing(ramp, sigma_min, sigma_max).

    ramp falls from 1 to 0. The module says how the grid ends.

    Raises:
        ValueError: the process' own levels are infinite or zero and none are given, or the levels
            do not rise from sigma_min to sigma_max, or they lie outside the domain.
    """
    _check_steps(num_steps)
    (start, end), name = process.domain, type(process).__name__
    least, most = _level(process, start), _level(process, end)
    low, high = least if sigma_min is None else sigma_min, most if sigma_max is None else sigma_max
    if low == 0 or high == math.inf:
        raise ValueError(
            f"{name} has noise levels sigma/alpha from {least:g} to {most:g}, which cannot be "
            "spaced: give sigma_min above 0 and a finite sigma_max, such as 0.002 and 80; got "
            f"{sigma_min} and {sigma_max}"
        )
    rounding = 1e-5  # of levels computed in float32
    if not least * (1 - rounding) <= low < high <= most * (1 + rounding):
        raise ValueError(
            f"sigma_min is below sigma_max, and for {name} both lie between {least:g} and "
            f"{most:g}; got {low:g} and {high:g}"
        )
    from_start = low <= least * (1 + rounding)
    reaches_clean = from_start and process.clean_end == start
    levels = jnp.asarray(spacing(np.linspace(1.0, 0.0, num_steps + reaches_clean), low, high))
    times = process.time_of(jnp.ones_like(levels), levels)
    if from_start and len(times) > 1:  # a single time is that of sigma_max
        times = times.at[-1].set(start)
    if most == math.inf or high >= most * (1 - rounding):
        times = times.at[0].set(end)
    return times if reaches_clean else jnp.append(times, process.clean_end)


def karras_grid(
    process: Process,
    num_steps: int,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Times:
    """Return equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, equation 5)."""
    root = 1 / rho
    spacing = lambda ramp, low, high: (low**root + ramp * (high**root - low**root)) ** rho
    return _times_of_levels(process, num_steps, spacing, sigma_min, sigma_max)


def exponential_grid(
    process: Process, num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> Times:
    """Return equal steps in log(sigma/alpha) and so in the log-SNR (Lu et al. 2022, DPM-Solver)."""
    spacing = lambda ramp, low, high: low * (high / low) ** ramp
    return _times_of_levels(process, num_steps, spacing, sigma_min, sigma_max)


def beta_sigma_grid(
    process: Process,
    num_steps: int,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Times:
    """Return quantiles of Beta(alpha, beta) in sigma/alpha.

    This is diffusers' version of `beta_grid`, whose paper takes the quantiles in t.
    """
    quantiles = lambda ramp: scipy.special.betaincinv(alpha, beta, ramp)
    spacing = lambda ramp, low, high: low + (high - low) * quantiles(ramp)
    return _times_of_levels(process, num_steps, spacing, sigma_min, sigma_max)


# sigma/alpha of ten steps, optimized for each model (Sabour et al. 2024, Align Your Steps, as on
# their project page).
STABLE_DIFFUSION_LEVELS = (
    14.615,
    6.475,
    3.861,
    2.697,
    1.886,
    1.396,
    0.963,
    0.652,
    0.399,
    0.152,
    0.029,
)
STABLE_DIFFUSION_XL_LEVELS = (
    14.615,
    6.315,
    3.771,
    2.181,
    1.342,
    0.862,
    0.555,
    0.380,
    0.234,
    0.113,
    0.029,
)
STABLE_VIDEO_DIFFUSION_LEVELS = (
    700.0,
    54.5,
    15.886,
    7.977,
    4.248,
    1.789,
    0.981,
    0.403,
    0.173,
    0.034,
    0.002,
)


def align_your_steps_grid(process: Process, num_steps: int, levels: Sequence[float]) -> Times:
    """Return times of published noise levels sigma/alpha, log-linear between them.

    Sabour et al. 2024, Align Your Steps. The first and the last level are the ends of the model for
    which they were optimized. The ends of this process replace them.

    Raises:
        ValueError: the levels do not fall, or lie outside the domain.
    """
    _check_steps(num_steps)
    if len(levels) < 2 or not all(a > b > 0 for a, b in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"levels are two or more falling numbers above 0; got {levels}")
    place = np.linspace(0, len(levels) - 1, num_steps + 1)[1:-1]
    inner = np.exp(np.interp(place, np.arange(len(levels)), np.log(levels)))
    least, most = (_level(process, t) for t in process.domain)
    if not np.all((least <= inner) & (inner <= most)):
        raise ValueError(
            f"the levels {inner} are not all among {type(process).__name__}'s noise levels, "
            f"{least:g} to {most:g}; use levels for this process, or change its domain"
        )
    times = process.time_of(jnp.ones(len(inner)), jnp.asarray(inner))
    return jnp.concatenate(
        [jnp.asarray([process.domain[1]]), times, jnp.asarray([process.clean_end])]
    )
