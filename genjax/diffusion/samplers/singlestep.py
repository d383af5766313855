"""DPM-Solver: exponential integrators with evaluations inside the step, and no memory.

As in `multistep`, the ODE is d(x/alpha) = ẑ·drho or d(x/sigma) = x̂·d(1/rho). It is integrated with
a polynomial in lambda = −log(rho), half the log-SNR. After every evaluation comes the first-order
step x_s = alpha_s·x̂ + sigma_s·ẑ from the evaluation at which the step began. This step is
corrected by the change of x̂ or ẑ since then.

With `on_grid`, a step of order p covers p intervals of the grid and evaluates at its times. This
equals the orders 1, 2, …, p in turn of diffusers. The last step may then be shorter and of lower
order. Otherwise the times inside a step divide its log-SNR evenly, or t where the log-SNR is
infinite. A step from or to infinite log-SNR is of first order.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import clip, finite, half_log_snr, noise_ratio, quotient
from genjax.diffusion.samplers.multistep import exponential_moments
from genjax.diffusion.samplers.one_step import ddim_step
from genjax.diffusion.samplers.runge_kutta import two_rows, without_last_row
from genjax.diffusion.samplers.tables import Rows, Table, sampler


def divide_steps(
    process: Process, times: Float[Array, " times"], parts: int
) -> Float[Array, " finer"]:
    """Return the grid with every step divided in `parts` of equal log-SNR.

    Where the log-SNR is infinite, the parts have equal t.
    """
    fractions = np.arange(parts) / parts
    even = lambda u: u[:-1, None] + jnp.diff(u)[:, None] * fractions.astype(u.dtype)
    log_snr = 2 * half_log_snr(process, times)
    known = jnp.isfinite(log_snr[:-1] + log_snr[1:])[:, None] & (fractions > 0)
    inside = jnp.where(known, process.time_at(jnp.where(known, even(log_snr), 0)), even(times))
    return jnp.append(clip(inside, *process.domain).reshape(-1), times[-1])


def _singlestep(process, times, order, half, slope_moment, on_grid):
    """Return the table of a method whose groups of `order` evaluations start from the same point.

    The step after an evaluation goes from the start of its group, along the line to the newest
    value.

    Args:
        half: "clean" or "noise", what the polynomial interpolates.
        slope_moment: function of a, where a is h for x̂ and −h for ẑ, and h is the change of lambda
            since the start.
    """
    nodes = times if on_grid else divide_steps(process, times, order)
    age = np.arange(len(nodes) - 1) % order  # evaluations since the start of the group
    u = half_log_snr(process, nodes)
    start = u[np.arange(len(age)) - age]
    h = u[1:] - start
    # 1/r of the newest value. It is 0 for the start itself and for infinite h.
    inverse = quotient(h, u[:-1] - start)
    alpha, sigma = process.alpha(nodes[1:]), process.sigma(nodes[1:])
    scale, a = (alpha, finite(h)) if half == "clean" else (sigma, finite(-h))
    change = scale * inverse * slope_moment(a)
    columns = np.arange(order)
    # A step of first order uses the newest value.
    newest = jnp.where(inverse == 0, 0, age)[:, None]
    start_weights = columns == newest
    change_weights = (columns == 0).astype(int) - (columns == age[:, None])
    table = Table(
        nodes[:-1],
        clean=alpha[:, None] * start_weights,
        noise=sigma[:, None] * start_weights,
        step=None if on_grid else np.arange(len(age)) // order,
    )
    return table._replace(**{half: getattr(table, half) + change[:, None] * change_weights})


def _half_constant_moment(a: Rows) -> Rows:
    """Return (1 − e^{−a})/2: half the moment of a constant."""
    return -jnp.expm1(-a) / 2


def _line_moment(a: Rows) -> Rows:
    """Return the moment of a line of slope 1."""
    return exponential_moments(a, 2)[:, 1]


@sampler
def dpm_solver_1(process: Process, times: Float[Array, " times"]) -> Table:
    """Take DPM-Solver-1 steps, which are also those of DPM-Solver++ of order 1 and of `ddim`.

    Lu et al. 2022a, section 4.1.
    """
    return ddim_step(process, times[:-1], times[1:], 0.0)


@sampler
def dpm_solver_2(process: Process, times: Float[Array, " times"], on_grid: bool = False) -> Table:
    """Take DPM-Solver-2 steps, with ẑ at the middle: order 2, 2 evaluations per step.

    Lu et al. 2022a, algorithm 1. With r = 1/2, x_s = alpha_s/alpha_t·x − sigma_s·(e^h − 1)·(ẑ +
    (ẑ_middle − ẑ)/(2r)).
    """
    return _singlestep(process, times, 2, "noise", _half_constant_moment, on_grid)


@sampler
def dpm_solver_3(process: Process, times: Float[Array, " times"], on_grid: bool = False) -> Table:
    """Take DPM-Solver-3 steps, with ẑ at thirds: order 3, 3 evaluations per step.

    Lu et al. 2022a, algorithm 2.
    """
    return _singlestep(process, times, 3, "noise", _line_moment, on_grid)


@sampler
def dpm_solver_pp_2s(
    process: Process, times: Float[Array, " times"], on_grid: bool = False
) -> Table:
    """Take DPM-Solver++(2S) steps, with x̂ at the middle: order 2, 2 evaluations per step.

    Lu et al. 2022b, algorithm 1. With r = 1/2, x_s = sigma_s/sigma_t·x + alpha_s·(1 − e^{−h})·(x̂ +
    (x̂_middle − x̂)/(2r)).
    """
    return _singlestep(process, times, 2, "clean", _half_constant_moment, on_grid)


@sampler
def dpm_solver_pp_3s(
    process: Process, times: Float[Array, " times"], on_grid: bool = False
) -> Table:
    """Take DPM-Solver++(3S) steps, with x̂ at thirds: order 3, 3 evaluations per step.

    This is the singlestep method of order 3 in the program of Lu et al. 2022b. With phi = 1 − (1 −
    e^{−h})/h, x_s = sigma_s/sigma_t·x + alpha_s·((1 − e^{−h})·x̂ + phi·3/2·(x̂_{2/3} − x̂)).
    """
    return _singlestep(process, times, 3, "clean", _line_moment, on_grid)


@sampler
def dpm_solver_pp_sde(
    process: Process, times: Float[Array, " times"], eta: float | Float[Array, ""] = 1.0
) -> Table:
    """Take DPM-Solver++ SDE steps, with noise that does not depend on the grid.

    Crowson 2022, k-diffusion. A step of `ddim` with `eta` leads to the middle in lambda. In the
    step from t to s, the x̂ found there replaces x̂: x_s = alpha_s·x̂_middle + down·(x_t/alpha_t −
    x̂_middle)/rho_t + fresh·ξ. The factors down and fresh are those of ẑ and ξ in `ddim`. The last
    step, and a step from infinite rho, are those of `ddim`. So there are 2N − 1 evaluations.

    ξ are increments of one Brownian path per sample in t. So for equal keys, samples on finer and
    finer grids converge to the solution of one SDE driven by that path. Other samplers draw other
    noise for each grid.
    """
    t, s, u = times[:-1], times[1:], half_log_snr(process, times)
    halved = jnp.isfinite(u[:-1]) & jnp.isfinite(u[1:]) & (np.arange(len(t)) < len(t) - 1)
    log_snr = jnp.where(halved, u[:-1] + u[1:], 0)
    middle = jnp.where(halved, process.time_at(log_snr), s)
    first, whole = ddim_step(process, t, middle, eta), ddim_step(process, t, s, eta)
    alpha, down, zeros = process.alpha(s), whole.noise[:, 0], jnp.zeros_like(t)
    kept = jnp.where(halved, alpha * quotient(down / alpha, noise_ratio(process, t)), 0)
    second = lambda column: jnp.where(halved, column, 0)
    table = Table(
        two_rows(t, middle),
        state=two_rows(zeros, jnp.where(halved, 0, jnp.ones_like(t))),
        clean=jnp.stack(
            [two_rows(first.clean[:, 0], second(alpha - kept)), two_rows(zeros, kept)], 1
        ),
        noise=jnp.stack([two_rows(first.noise[:, 0], zeros), two_rows(zeros, second(down))], 1),
        step=np.arange(2 * len(t)) // 2,
    )
    if first.fresh is None:
        return without_last_row(table)
    place = lambda t: (t - process.clean_end) / (process.domain[1] - process.clean_end)
    path = jnp.stack([two_rows(place(t), place(t)), two_rows(place(middle), place(s))], 1)
    return without_last_row(
        table._replace(fresh=two_rows(first.fresh, second(whole.fresh)), path=path)
    )
