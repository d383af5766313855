"""Multistep methods: one evaluation per step, and polynomials through those of earlier steps.

In t the ODE is dx/dt = velocity(x, t). With rho = sigma/alpha and lambda = −log(rho), half the
log-SNR, it is also

    d(x/alpha) = ẑ·drho        and        d(x/sigma) = x̂·d(1/rho),        1/rho = e^lambda.

A method replaces v, ẑ or x̂ by the polynomial in t, rho or lambda through its last values. It
integrates that polynomial exactly, on any grid and at any order. Let r_j = (u_{n−j} − u_n)/(u_{n+1}
− u_n) be the past of the variable u in units of the step. Lagrange's polynomials need only 1/r_j.

1/r_j = 0 is a past that drops out: it does not exist yet, it lies at infinite u, or the step itself
is infinite. So every method starts with lower orders. At an end of infinite log-SNR it takes the
first-order step x_s = alpha_s·x̂ + sigma_s·ẑ. All methods but `adams_bashforth` add their
corrections Σ_j c_j·(x̂_j − x̂_0) to this step, or the same of ẑ.

The first step is Euler's, with a local error of order 2. So a whole method of order p > 2 has order
2 on evenly refined grids, with a smaller constant. It has order p on a grid that begins as
`graded_start` makes it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import finite, half_log_snr, noise_ratio, quotient, root
from genjax.diffusion.samplers.tables import History, Rows, Table, sampler


def choose(name: str, value: object, choices: tuple) -> object:
    """Return `value` if it is one of `choices`, and raise ValueError otherwise."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def graded_start(times: Float[Array, " times"], order: int) -> Float[Array, " finer"]:
    """Return the grid with order − 2 more times in its first step, for a start by low orders.

    Let N be the number of steps. For k = 2, …, p − 1 a step of order k − 1 ends at the part
    N^{(k−p)/k} of the first step. Its local error is (N^{(k−p)/k}/N)^k = N^{−p}. So a multistep
    method of order p has order p as a whole.

    Args:
        order: p.
    """
    k = np.arange(2, order)
    parts = jnp.asarray((len(times) - 1.0) ** ((k - order) / k), times.dtype)
    return jnp.concatenate([times[:1], times[0] + parts * (times[1] - times[0]), times[1:]])


def inverse_past(
    u: Float[Array, " times"], order: int, lower_order_final: bool = False
) -> Float[Array, " times-1 history"]:
    """Return 1/r_j for the `order` − 1 times before each step's own.

    It is 0 where there is no such time or r_j is infinite. With `lower_order_final` the order of a
    step is at most the number of steps left, including itself.
    """
    steps = len(u) - 1
    past = np.arange(steps)[:, None] - np.arange(1, order)
    exists = past >= 0
    if lower_order_final:
        exists &= np.arange(1, order) < steps - np.arange(steps)[:, None]
    distance = u[np.maximum(past, 0)] - u[:-1, None]
    return jnp.where(exists, quotient(jnp.diff(u)[:, None], distance), 0)


def lagrange(inverse: History, moments: Float[Array, " rows powers"]) -> History:
    """Return the weight of each past value, minus the present value, in an integral over the step.

    The integrand is the polynomial through the values at 0 and at 1/inverse[j], and ∫τ^k over the
    step is moments[:, k].
    """
    columns = []
    for j in range(inverse.shape[1]):
        # Coefficients of τ, τ², … in the polynomial that is 1 at r_j and 0 at the others.
        powers = [inverse[:, j]]
        for i in set(range(inverse.shape[1])) - {j}:
            gap = inverse[:, j] - inverse[:, i]
            scale = inverse[:, j] / jnp.where(gap == 0, 1, gap)
            powers = [
                scale * (a - inverse[:, i] * b)
                for a, b in zip([*powers, 0], [0, *powers], strict=True)
            ]
        columns.append(sum(power * moments[:, k + 1] for k, power in enumerate(powers)))
    return jnp.stack(columns, 1) if columns else jnp.zeros_like(inverse)


def plain_moments(steps: Rows, count: int) -> Float[Array, " rows powers"]:
    """Return ∫₀¹ τ^k dτ, k = 0, …, count − 1."""
    return jnp.broadcast_to(1 / jnp.arange(1, count + 1, dtype=steps.dtype), (len(steps), count))


def exponential_moments(a: Rows, count: int) -> Float[Array, " rows powers"]:
    """Return m_k = a·∫₀¹ exp(−a·(1 − τ))·τ^k dτ, k = 0, …, count − 1.

    By parts, m_0 = 1 − e^{−a} and m_k = 1 − k/a·m_{k−1}. This recursion cancels where a is small.
    There it starts at a much larger k and runs downwards.
    """
    small = jnp.abs(a) < 0.5
    safe = jnp.where(small, 1, a)
    upwards = [-jnp.expm1(-a)]
    for k in range(1, count):
        upwards.append(1 - k / safe * upwards[-1])
    # m_k is about a/(k + 1). The downward recursion divides an error there by k!/a^k.
    downwards = [jnp.zeros_like(a)]
    for k in range(count + 12, 0, -1):
        downwards.append(a * (1 - downwards[-1]) / k)
    return jnp.stack(
        [jnp.where(small, d, u) for u, d in zip(upwards, reversed(downwards), strict=False)], 1
    )


def corrected(main: Rows, corrections: History) -> Float[Array, " rows history+1"]:
    """Return the coefficients of main·D_0 + Σ_j corrections[j]·(D_j − D_0)."""
    return jnp.concatenate([main[:, None] - corrections.sum(1, keepdims=True), corrections], 1)


@sampler
def adams_bashforth(process: Process, times: Float[Array, " times"], order: int = 2) -> Table:
    """Integrate the polynomial in t through the last velocities: Adams–Bashforth, order 1 to 4."""
    choose("order", order, (1, 2, 3, 4))
    t, h = times[:-1], jnp.diff(times)
    weights = corrected(
        jnp.ones_like(h), lagrange(inverse_past(times, order), plain_moments(h, order))
    )
    past = np.maximum(np.arange(len(h))[:, None] - np.arange(order), 0)
    return Table(
        t,
        state=jnp.ones_like(t),
        clean=h[:, None] * weights * process.alpha_prime(t)[past],
        noise=h[:, None] * weights * process.sigma_prime(t)[past],
    )


@sampler
def lms(process: Process, times: Float[Array, " times"], order: int = 4) -> Table:
    """Integrate the polynomial in rho through the last ẑ: Adams–Bashforth, order 1 to 4.

    It is `sample_lms` of Crowson 2022, k-diffusion, and the ρAB-DEIS of Zhang & Chen 2023.
    """
    choose("order", order, (1, 2, 3, 4))
    alpha, sigma, rho = process.alpha(times), process.sigma(times), noise_ratio(process, times)
    rise = finite(jnp.diff(rho))
    c = (alpha[1:] * rise)[:, None] * lagrange(inverse_past(rho, order), plain_moments(rise, order))
    return Table(times[:-1], clean=alpha[1:, None], noise=corrected(sigma[1:], c))


@sampler
def deis(
    process: Process, times: Float[Array, " times"], order: int = 3, lower_order_final: bool = False
) -> Table:
    """Integrate the polynomial in lambda through the last ẑ exactly, of order 1 to 3.

    It is the DEIS of diffusers. The authors, Zhang & Chen 2023, take polynomials in t (tAB-DEIS) or
    in rho (ρAB-DEIS, which is `lms`). With h = lambda_s − lambda_t, x_s = alpha_s/alpha_t·x −
    sigma_s·h·∫₀¹ exp(h·(1 − τ))·ẑ(τ) dτ.
    """
    choose("order", order, (1, 2, 3))
    u = half_log_snr(process, times)
    h = finite(jnp.diff(u))
    inverse = inverse_past(u, order, lower_order_final)
    c = process.sigma(times[1:])[:, None] * lagrange(inverse, exponential_moments(-h, order))
    return Table(
        times[:-1],
        clean=process.alpha(times[1:])[:, None],
        noise=corrected(process.sigma(times[1:]), c),
    )


def _data_multistep(process, times, order, eta, reshape, lower_order_final):
    """Return the table of a multistep method for x̂, with a = (1 + eta)·h.

    x_s = sigma_s/sigma_t·e^{−eta·h}·x + alpha_s·a·∫₀¹ exp(−a·(1 − τ))·x̂(τ) dτ + noise.
    """
    u = half_log_snr(process, times)
    h = finite(jnp.diff(u))
    alpha, sigma = process.alpha(times[1:])[:, None], process.sigma(times[1:])
    moments = reshape(exponential_moments((1 + eta) * h, order))
    c = alpha * lagrange(inverse_past(u, order, lower_order_final), moments)
    table = Table(times[:-1], clean=corrected(alpha[:, 0], c), noise=sigma[:, None])
    if isinstance(eta, (int, float)) and eta == 0:
        return table
    decay = _decay(u, eta)
    return table._replace(
        noise=(sigma * jnp.exp(-decay))[:, None], fresh=sigma * root(-jnp.expm1(-2 * decay))
    )


def _decay(u, eta):
    """Return eta·h: the SDE forgets its state by e^{−eta·h}.

    It is 0 if eta is 0, in an infinite step too. A step between two infinite values of u is one in
    which a frame waits.
    """
    h = jnp.diff(u)
    return eta * jnp.where((eta == 0) | jnp.isnan(h), 0, h)


@sampler
def dpm_solver_pp_2m(
    process: Process,
    times: Float[Array, " times"],
    eta: float | Float[Array, ""] = 0.0,
    form: str = "midpoint",
    lower_order_final: bool = False,
) -> Table:
    """Take DPM-Solver++(2M) steps, with x̂ linear in lambda, of order 2.

    Lu et al. 2022b, algorithm 2.

    Args:
        eta: 0 for the ODE, 1 for the SDE. The noise is sigma_s·√(1 − exp(−2·eta·h)).
        form: "heun" integrates the line exactly. "midpoint", the paper's form, replaces the moment
            of its slope, 1 − (1 − e^{−h})/h, by (1 − e^{−h})/2. The difference is within an error
            of order 2.
        lower_order_final: the last step has order 1 at a finite end too. Take it where few steps
            end at little noise: lambda rises most in the last one, and a line through the last two
            x̂ leads far beyond them.
    """
    choose("form", form, ("midpoint", "heun"))
    halve = lambda m: jnp.stack([m[:, 0], m[:, 0] / 2], 1)
    reshape = halve if form == "midpoint" else lambda m: m
    return _data_multistep(process, times, 2, eta, reshape, lower_order_final)


@sampler
def dpm_solver_pp_3m(
    process: Process,
    times: Float[Array, " times"],
    eta: float | Float[Array, ""] = 0.0,
    curvature: float = 1.0,
    lower_order_final: bool = False,
) -> Table:
    """Take DPM-Solver++(3M) steps, with x̂ a parabola in lambda, of order 3 (Lu et al. 2022b).

    Args:
        eta: 0 for the ODE, 1 for the SDE, as in `dpm_solver_pp_2m`.
        curvature: factor of the moment of τ². The usual programs have .5, because they take the
            second divided difference for the second derivative, which is twice as large. They have
            order 2 only.
        lower_order_final: the order of a step is at most the number of steps left.
    """
    reshape = lambda m: m * jnp.asarray([1, 1, curvature], m.dtype)
    return _data_multistep(process, times, 3, eta, reshape, lower_order_final)


@sampler
def unipc(
    process: Process,
    times: Float[Array, " times"],
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
    lower_order_final: bool = False,
) -> Table:
    """Take UniPC steps for x̂: predictor and corrector with one evaluation, of order 1 to 3.

    Zhao et al. 2023, algorithms 1 and 2. The predictor follows the polynomial in lambda through the
    last `order` values of x̂. The value at its end is one more, and with it the corrector does that
    step again. Let x_t be the predicted point and x_t + d_t the corrected one, where d_t is a
    combination of values of x̂. The next point is

        x_s = sigma_s/sigma_t·(x_t + d_t) + alpha_s·h·∫₀¹ exp(−h·(1 − τ))·x̂(τ) dτ.

    States are predicted points. The corrector adds one to the order, and its start has order 2. So
    from an even start, both order 2 and order 3 give order 3 as a whole.

    Args:
        variant: how to treat a line, which is a predictor of order 2 or a corrector of order 1. The
            moment of its slope is B/2, with B = h for "bh1", the authors' default, and 1 − e^{−h}
            for "bh2", that of diffusers. Otherwise the variants agree.
        corrector: use the corrector.
        lower_order_final: the order of a step is at most the number of steps left.
    """
    choose("order", order, (1, 2, 3))
    choose("variant", variant, ("bh1", "bh2"))
    line = (lambda a, m: a / 2) if variant == "bh1" else (lambda a, m: m[:, 0] / 2)
    return _predict_and_correct(
        process, times, order, order if corrector else 0, 0.0, line, lower_order_final
    )


@sampler
def sa_solver(
    process: Process,
    times: Float[Array, " times"],
    tau: float | Float[Array, ""] | Float[Array, " steps"] = 1.0,
    order: int = 2,
    corrector_order: int = 2,
    form: str = "exact",
    lower_order_final: bool = False,
) -> Table:
    """Take SA-Solver steps for x̂: `unipc` of an SDE, with noise at every step.

    Xue et al. 2023, algorithm 1. Predictor and corrector (Adams–Bashforth, Adams–Moulton) integrate
    x̂ against exp(−(1 + tau²)·(lambda_s − lambda)). They share the step's noise, sigma_s·√(1 −
    exp(−2·tau²·h))·ξ. Each step has one evaluation, and states are predicted points.

    Args:
        tau: 0 for the ODE, 1 for the reverse SDE: one value for all steps, or one for each. The
            authors take 1 between two noise levels and 0 outside.
        order: the number of values of x̂ that the predictor uses, 1 to 3.
        corrector_order: the number of values that the corrector uses, 2 to 4, including the new
            one. 1 leaves the corrector out.
        form: "exact" integrates a line exactly. "program" takes the moment of its slope as (1 +
            tau²)·h/2, as diffusers and the authors' program for few steps do. The difference is
            within an error of order 2.
        lower_order_final: the order of a step is at most the number of steps left.
    """
    choose("order", order, (1, 2, 3))
    choose("corrector_order", corrector_order, (1, 2, 3, 4))
    choose("form", form, ("exact", "program"))
    line = (lambda a, m: a / 2) if form == "program" else (lambda a, m: m[:, 1])
    is_ode = isinstance(tau, int | float) and tau == 0
    eta = (
        0.0 if is_ode else jnp.broadcast_to(jnp.asarray(tau, times.dtype) ** 2, times.shape[0] - 1)
    )
    return _predict_and_correct(
        process, times, order, corrector_order - 1, eta, line, lower_order_final
    )


def _predict_and_correct(process, times, order, corrector, eta, line, lower_order_final):
    """Return the table in which a predictor takes every step, and a corrector takes it again.

    The corrector also uses x̂ at the point where the predictor ended.

    Args:
        order, corrector: the number of values, up to the step's start, that predictor and corrector
            use. A corrector of 0 is none.
        eta: of the SDE, a number or one per step, as in `_data_multistep`; 0.0 for the ODE.
        line: `(a, moments) -> moment` of a line's slope, where predictor or corrector is a line.
    """
    u = half_log_snr(process, times)
    a = (1 + eta) * finite(jnp.diff(u))
    alpha, sigma = process.alpha(times[1:]), process.sigma(times)
    exact = exponential_moments(a, max(order, corrector) + 1)
    line_moments = exact.at[:, 1].set(line(a, exact))

    def weights(count, new):
        past = inverse_past(u, max(count, 1), lower_order_final)
        is_line = new + 1 + (past != 0).sum(1, keepdims=True) == 2
        end = jnp.ones((len(a), new), a.dtype)  # 1/r of the new value
        return alpha[:, None] * lagrange(
            jnp.concatenate([end, past], 1), jnp.where(is_line, line_moments, exact)
        )

    predictor = weights(order, 0)
    clean, kept = corrected(alpha, predictor), quotient(sigma[1:], sigma[:-1])
    table = Table(times[:-1], noise=sigma[1:, None])
    if not isinstance(eta, float):
        decay = _decay(u, eta)
        kept, noise = (a * jnp.exp(-decay) for a in (kept, sigma[1:]))
        table = table._replace(noise=noise[:, None], fresh=sigma[1:] * root(-jnp.expm1(-2 * decay)))
    if corrector:
        width = max(order, corrector)
        wider = lambda column, left: jnp.pad(
            column, ((0, 0), (left, width - left - column.shape[1]))
        )
        change = wider(weights(corrector, 1), 0) - wider(predictor, 1)
        # Newest value first: the new one, the present one, and the past.
        d = jnp.concatenate([change[:, :1], -change.sum(1, keepdims=True), change[:, 1:]], 1)
        clean = jnp.pad(clean, ((0, 0), (0, width + 1 - order)))
        clean = clean + kept[:, None] * jnp.pad(d[:-1], ((1, 0), (0, 0)))
    return table._replace(clean=clean)
