"""Runge–Kutta methods for the probability-flow ODE: several evaluations a step, no memory between steps.

In t the ODE is dx/dt = velocity(x, t); with x̄ = x/alpha and rho = sigma/alpha it is dx̄/drho = ẑ
(Song et al. 2021, DDIM, equation 14; Karras et al. 2022). The two differ in their steps, though not
in their solution.
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
    """An explicit Runge–Kutta method in t, of a Butcher tableau whose nodes are the row sums of `matrix`.

    With step h, v_i is the velocity at x_t + h·Σ_j matrix[i][j]·v_j, and x_s = x_t + h·Σ_i
    weights[i]·v_i. A step is Euler's if an evaluation leaves the process' domain (EDM: the one to
    sigma = 0) or meets an infinite velocity (variance preserving ones: sigma' at the clean end).
    Then all its evaluations are at t, the later ones in vain.
    """
    matrix, weights = np.asarray(matrix), np.asarray(weights)
    stages = len(weights)
    evaluation_times, leaves_domain = _evaluation_times(process, times, matrix.sum(1))
    # After its evaluation, stage i goes on to the point of stage i + 1, the last one to the new state.
    sums = np.concatenate([matrix[1:], weights[None]])
    ages = np.arange(stages)[:, None] - np.arange(
        stages
    )  # of stage j's velocity, in evaluations, at stage i
    euler = np.concatenate([np.zeros((stages - 1, stages)), np.eye(1, stages)])
    h = jnp.diff(times)[:, None, None]
    sums = h * jnp.where(leaves_domain[:, :, None], euler, sums).astype(
        times.dtype
    )  # [step, after stage, of velocity]

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
    """Return the evaluations' times `[step stage]`, and `[step 1]` where a step has to be Euler's."""
    t, h = times[:-1, None], jnp.diff(times)[:, None]
    planned = t + h * nodes.astype(times.dtype)
    first, last = process.domain
    margin = 1e-6 * (last - first)  # what float32 rounds away
    evaluation_times = clip(planned, first, last)
    velocity = process.alpha_prime(evaluation_times) + process.sigma_prime(evaluation_times)
    leaves_domain = ((jnp.abs(planned - evaluation_times) > margin) | ~jnp.isfinite(velocity)).any(
        1, keepdims=True
    )
    return jnp.where(leaves_domain, t, evaluation_times), leaves_domain


@sampler
def midpoint(process: Process, times: Float[Array, " times"]) -> Table:
    """x_s = x_t + h·v at the middle of the step, which half a step of Euler's reaches; of order 2."""
    return runge_kutta(process, times, [[0, 0], [1 / 2, 0]], [0, 1])


@sampler
def heun(process: Process, times: Float[Array, " times"]) -> Table:
    """The trapezoidal rule in t, x_s = x_t + h/2·(v_t + v_s), with v_s where Euler's step ends; of order 2.

    Every step is corrected, the last one too: the denoiser has to know the clean end. Else take
    `edm_heun`.
    """
    return runge_kutta(process, times, [[0, 0], [1, 0]], [1 / 2, 1 / 2])


@sampler
def rk4(process: Process, times: Float[Array, " times"]) -> Table:
    """The classical Runge–Kutta method in t, of order 4."""
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
    """Heun's method in (x/alpha, sigma/alpha), whose last step is Euler's: 2N − 1 evaluations, of order 2.

    Karras et al. 2022, algorithm 1, for any process. In DDIM's terms: x_s = alpha_s·x̂ + sigma_s·ẑ,
    evaluated there, and then x_s + alpha_s·(rho_s − rho_t)/2·(ẑ_s − ẑ). A step from or to infinite
    rho is not corrected.

    Args:
        last_corrected: correct the last step too, with 2N evaluations, for a grid that ends before
            the clean end: so the parts of a grid give what the whole gives, and inversion is of
            order 2 at its end too.
    """
    table = heun_in_rho(process, times[:-1], times[1:])
    return table if last_corrected else without_last_row(table)


def heun_in_rho(
    process: Process, starts: Float[Array, " steps"], ends: Float[Array, " steps"]
) -> Table:
    """`edm_heun` for steps which need not start where the last one ended."""
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
    """Return a column of two rows a step."""
    return jnp.stack([first, second], 1).reshape(-1)


def without_last_row(table: Table) -> Table:
    """Return the table whose last step has its first row alone."""
    return jax.tree.map(lambda column: column[:-1], table)
