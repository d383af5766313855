"""Runge–Kutta methods for the probability-flow ODE: several evaluations per step and no memory.

In t the ODE is dx/dt = velocity(x, t). With x̄ = x/alpha and rho = sigma/alpha it is dx̄/drho = ẑ
(Song et al. 2021, DDIM, equation 14; Karras et al. 2022). The steps of the two differ, but their
solution is the same.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import clip, finite, noise_ratio
from genjax.diffusion.samplers.tables import Table, sampler


def runge_kutta(
    process: Process,
    times: Float[Array, " times"],
    matrix: Sequence[Sequence[int | float]],
    weights: Sequence[int | float],
) -> Table:
    """Return the table of an explicit Runge–Kutta method in t with this Butcher tableau.

    The nodes are the row sums of `matrix`. With step h, v_i is the velocity at x_t + h·Σ_j
    matrix[i][j]·v_j, and x_s = x_t + h·Σ_i weights[i]·v_i.

    A step becomes Euler's in two cases. An evaluation leaves the process' domain (EDM: at sigma =
    0), or it meets an infinite velocity (variance preserving processes: sigma' at the clean end).
    All evaluations of the step are then at t, and only the first is used.
    """
    matrix, weights = np.asarray(matrix), np.asarray(weights)
    stages = len(weights)
    evaluation_times, leaves_domain = _evaluation_times(process, times, matrix.sum(1))
    # After its evaluation, stage i moves to the point of stage i + 1. The last stage moves to the
    # new state.
    sums = np.concatenate([matrix[1:], weights[None]])
    # Age of stage j's velocity at stage i, in evaluations.
    ages = np.arange(stages)[:, None] - np.arange(stages)
    euler = np.concatenate([np.zeros((stages - 1, stages)), np.eye(1, stages)])
    h = jnp.diff(times)[:, None, None]
    # [step, after stage, of velocity]
    sums = h * jnp.where(leaves_domain[:, :, None], euler, sums).astype(times.dtype)

    def columns_by_age(derivative):
        products = sums * derivative(evaluation_times)[:, None, :]
        columns = [jnp.where(ages == age, products, 0).sum(2) for age in range(stages)]
        return jnp.stack(columns, 2)

    clean, noise = columns_by_age(process.alpha_prime), columns_by_age(process.sigma_prime)
    final = (np.arange(stages) == stages - 1)[:, None]
    rows = lambda a: a.reshape(-1, *a.shape[2:])
    ones = jnp.ones_like(rows(evaluation_times))
    return Table(
        rows(evaluation_times),
        state=ones,
        clean=rows(jnp.where(final, clean, 0)),
        noise=rows(jnp.where(final, noise, 0)),
        stage_state=ones,
        stage_clean=rows(jnp.where(final, 0, clean)),
        stage_noise=rows(jnp.where(final, 0, noise)),
        step=np.arange(len(ones)) // stages,
    )


def _evaluation_times(process, times, nodes):
    """Return the evaluations' times `[step stage]`, and which steps must be Euler's, `[step 1]`."""
    t, h = times[:-1, None], jnp.diff(times)[:, None]
    planned = t + h * nodes.astype(times.dtype)
    first, last = process.domain
    margin = 1e-6 * (last - first)  # rounding error of float32
    evaluation_times = clip(planned, first, last)
    velocity = process.alpha_prime(evaluation_times) + process.sigma_prime(evaluation_times)
    leaves_domain = ((jnp.abs(planned - evaluation_times) > margin) | ~jnp.isfinite(velocity)).any(
        1, keepdims=True
    )
    return jnp.where(leaves_domain, t, evaluation_times), leaves_domain


@sampler
def midpoint(process: Process, times: Float[Array, " times"]) -> Table:
    """Take midpoint steps, x_s = x_t + h·v, of order 2.

    v is the velocity at the middle of the step, where half a step of Euler's ends.
    """
    return runge_kutta(process, times, [[0, 0], [1 / 2, 0]], [0, 1])


@sampler
def heun(process: Process, times: Float[Array, " times"]) -> Table:
    """Take steps of the trapezoidal rule in t, x_s = x_t + h/2·(v_t + v_s), of order 2.

    v_s is the velocity where Euler's step ends. Every step is corrected, including the last, so the
    denoiser must know the clean end. Otherwise use `edm_heun`.
    """
    return runge_kutta(process, times, [[0, 0], [1, 0]], [1 / 2, 1 / 2])


@sampler
def rk4(process: Process, times: Float[Array, " times"]) -> Table:
    """Take steps of the classical Runge–Kutta method in t, of order 4."""
    return runge_kutta(
        process,
        times,
        [[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
    )


@sampler
def edm_heun(
    process: Process, times: Float[Array, " times"], last_corrected: bool = False
) -> Table:
    """Take Heun steps in (x/alpha, sigma/alpha), of order 2, and Euler's as the last step.

    There are 2N − 1 evaluations.

    Karras et al. 2022, algorithm 1, for any process. In DDIM's terms the step first goes to x_s =
    alpha_s·x̂ + sigma_s·ẑ and evaluates there. It ends at x_s + alpha_s·(rho_s − rho_t)/2·(ẑ_s −
    ẑ). A step from or to infinite rho is not corrected.

    Args:
        last_corrected: correct the last step too, with 2N evaluations, for a grid that ends before
            the clean end. Then the parts of a grid give the same as the whole, and inversion has
            order 2 at its end too.
    """
    table = heun_in_rho(process, times[:-1], times[1:])
    return table if last_corrected else without_last_row(table)


def heun_in_rho(
    process: Process, starts: Float[Array, " steps"], ends: Float[Array, " steps"]
) -> Table:
    """Return the table of `edm_heun` for steps that need not follow one another."""
    alpha, sigma = process.alpha(ends), process.sigma(ends)
    rise = noise_ratio(process, ends) - noise_ratio(process, starts)
    change = alpha * finite(rise) / 2
    zeros = jnp.zeros_like(change)
    return Table(
        two_rows(starts, ends),
        clean=jnp.stack([two_rows(alpha, zeros), two_rows(zeros, alpha)], 1),
        noise=jnp.stack([two_rows(sigma, change), two_rows(zeros, sigma - change)], 1),
        step=np.arange(2 * len(change)) // 2,
    )


def two_rows(
    first: Float[Array, " steps"], second: Float[Array, " steps"]
) -> Float[Array, " rows"]:
    """Return a column with two rows per step."""
    return jnp.stack([first, second], 1).reshape(-1)


def without_last_row(table: Table) -> Table:
    """Return the table without its last row, so that the last step has only its first row."""
    return jax.tree.map(lambda column: column[:-1], table)
