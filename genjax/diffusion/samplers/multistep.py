"""Multistep methods: one evaluation a step, and polynomials through those of the steps before.

In t the ODE is dx/dt = velocity(x, t). With rho = sigma/alpha and lambda = −log(rho), half the
log-SNR, it is also

    d(x/alpha) = ẑ·drho        and        d(x/sigma) = x̂·d(1/rho),        1/rho = e^lambda.

A method replaces v, ẑ or x̂ by the polynomial in t, rho or lambda through its last values and
integrates that exactly: on any grid, at any order. With r_j = (u_{n−j} − u_n)/(u_{n+1} − u_n) the
past of the variable u in units of the step, Lagrange's polynomials need only 1/r_j, and 1/r_j = 0
is a past that drops out: because it does not exist yet, because it lies at infinite u, or because
the step itself is infinite. So every method starts by lower orders, and at an end of infinite
log-SNR does the first-order step x_s = alpha_s·x̂ + sigma_s·ẑ, to which all but `adams_bashforth`
add their corrections Σ_j c_j·(x̂_j − x̂_0), or the same of ẑ.

The first step is Euler's, its local error of order 2: so as a whole a method of order p > 2 is of
order 2 on grids refined evenly, though with a smaller constant. On a grid that begins as
`graded_start` makes it, it is of order p.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import finite, half_log_snr, noise_ratio, quotient, root
from genjax.diffusion.samplers.tables import History, Rows, Table, sampler


def choose(name: str, value: object, choices: tuple) -> object:
    """`value`, if it is one of `choices`; raises ValueError otherwise."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def graded_start(times: Float[Array, " times"], order: int) -> Float[Array, " finer"]:
    """The grid with order − 2 times more in its first step, so near its start that low orders suffice there.

    Of N steps, the part N^{(k−p)/k} of the first step is where a step of order k − 1, k = 2, …, p −
    1, ends: with local error (N^{(k−p)/k}/N)^k = N^{−p}. A multistep method of order p is then of
    order p as a whole.
    """
    k = np.arange(2, order)
    parts = jnp.asarray((len(times) - 1.0) ** ((k - order) / k), times.dtype)
    return jnp.concatenate([times[:1], times[0] + parts * (times[1] - times[0]), times[1:]])


def inverse_past(
    u: Float[Array, " times"], order: int, lower_order_final: bool = False
) -> Float[Array, " times-1 history"]:
    """1/r_j of the `order` − 1 times before each step's own, 0 where there is none or where r_j is infinite.

    With `lower_order_final` a step has no higher order than there are steps left, itself included.
    """
    steps = len(u) - 1
    past = np.arange(steps)[:, None] - np.arange(1, order)
    exists = past >= 0
    if lower_order_final:
        exists &= np.arange(1, order) < steps - np.arange(steps)[:, None]
    distance = u[np.maximum(past, 0)] - u[:-1, None]
    return jnp.where(exists, quotient(jnp.diff(u)[:, None], distance), 0)


def lagrange(inverse: History, moments: Float[Array, " rows powers"]) -> History:
    """The weight of each past value, less the present one, in an integral over the step.

    For the polynomial through the values at 0 and at 1/inverse[j], where ∫τ^k over the step is
    moments[:, k].
    """
    columns = []
    for j in range(inverse.shape[1]):
        powers = [
            inverse[:, j]
        ]  # of the polynomial that is 1 at r_j and 0 at the others: of τ, τ², …
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
    """∫₀¹ τ^k dτ."""
    return jnp.broadcast_to(1 / jnp.arange(1, count + 1, dtype=steps.dtype), (len(steps), count))


def exponential_moments(a: Rows, count: int) -> Float[Array, " rows powers"]:
    """m_k = a·∫₀¹ exp(−a·(1 − τ))·τ^k dτ, k = 0, …, count − 1.

    By parts, m_0 = 1 − e^{−a} and m_k = 1 − k/a·m_{k−1}; where a is small this cancels, and the
    same recursion is begun far above and run downwards.
    """
    small = jnp.abs(a) < 0.5
    safe = jnp.where(small, 1, a)
    upwards = [-jnp.expm1(-a)]
    for k in range(1, count):
        upwards.append(1 - k / safe * upwards[-1])
    downwards = [
        jnp.zeros_like(a)
    ]  # m_k is about a/(k + 1); an error there is divided by k!/a^k on the way
    for k in range(count + 12, 0, -1):
        downwards.append(a * (1 - downwards[-1]) / k)
    return jnp.stack(
        [jnp.where(small, d, u) for u, d in zip(upwards, reversed(downwards), strict=False)], 1
    )


def corrected(main: Rows, corrections: History) -> Float[Array, " rows history+1"]:
    """Coefficients of main·D_0 + Σ_j corrections[j]·(D_j − D_0)."""
    return jnp.concatenate([main[:, None] - corrections.sum(1, keepdims=True), corrections], 1)


@sampler
def adams_bashforth(process: Process, times: Float[Array, " times"], order: int = 2) -> Table:
    """Adams–Bashforth in t, of order 1 to 4: the polynomial through the last velocities, integrated."""
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
    """Adams–Bashforth for ẑ in rho, of order 1 to 4: the linear multistep method of Karras et al.'s program."""
    choose("order", order, (1, 2, 3, 4))
    alpha, sigma, rho = process.alpha(times), process.sigma(times), noise_ratio(process, times)
    rise = finite(jnp.diff(rho))
    c = (alpha[1:] * rise)[:, None] * lagrange(inverse_past(rho, order), plain_moments(rise, order))
    return Table(times[:-1], clean=alpha[1:, None], noise=corrected(sigma[1:], c))


@sampler
def deis(
    process: Process, times: Float[Array, " times"], order: int = 3, lower_order_final: bool = False
) -> Table:
    """The exponential integrator with the polynomial through ẑ in lambda, of order 1 to 3.

    Zhang & Chen 2023, DEIS, in their variable log(rho) = −lambda. With h = lambda_s − lambda_t,
    x_s = alpha_s/alpha_t·x − sigma_s·h·∫₀¹ exp(h·(1 − τ))·ẑ(τ) dτ.
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
    """x_s = sigma_s/sigma_t·e^{−eta·h}·x + alpha_s·a·∫₀¹ exp(−a·(1 − τ))·x̂(τ) dτ + noise, a = (1 + eta)·h."""
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
    """Return eta·h, by whose exponential the SDE forgets; 0 if eta is, in an infinite step too.

    A step between two infinite values of u is one in which a frame waits.
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
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): x̂ is linear in lambda; of order 2.

    Args:
        eta: 0 for the ODE, 1 for the SDE; the noise is sigma_s·√(1 − exp(−2·eta·h)).
        form: "heun" integrates the line exactly, "midpoint" takes its slope's moment, 1 − (1 −
            e^{−h})/h, to be (1 − e^{−h})/2: the paper's. They differ by what an error of order 2
            allows.
        lower_order_final: the last step is of first order at a finite end too.
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
    """DPM-Solver++(3M) (Lu et al. 2022b): x̂ is a parabola in lambda, integrated exactly; of order 3.

    Args:
        eta: 0 for the ODE, 1 for the SDE, as in `dpm_solver_pp_2m`.
        curvature: multiplies the moment of τ². At .5 it is what the usual programs compute, which
            take the second divided difference for the second derivative, twice as large; and of
            order 2 only.
        lower_order_final: no step has a higher order than there are steps left.
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
    """UniPC for x̂ (Zhao et al. 2023, algorithms 1 and 2), of order 1 to 3: two methods with one evaluation a step.

    The predictor goes along the polynomial through the last `order` values of x̂, in lambda. The
    value where it ends is one more, through which the corrector does that step again. With x_t the
    predicted point and x_t + d_t the corrected one, d_t a combination of values of x̂, the next
    point is

        x_s = sigma_s/sigma_t·(x_t + d_t) + alpha_s·h·∫₀¹ exp(−h·(1 − τ))·x̂(τ) dτ.

    States are predicted points. The corrector adds one to the order, and lets it begin from two:
    from an even start order 2 gives 3 as a whole, and order 3 does too.

    Args:
        variant: where the predictor, of order 2, or the corrector, of order 1, is a line, its
            slope's moment is taken to be B/2, with B = h for "bh1" and 1 − e^{−h} for "bh2"; in all
            else the variants agree.
        lower_order_final: no step has a higher order than there are steps left.
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
    """SA-Solver for x̂ (Xue et al. 2023, algorithm 1): `unipc` of an SDE, with noise at every step.

    Predictor and corrector (Adams–Bashforth, Adams–Moulton) integrate x̂ against exp(−(1 +
    tau²)·(lambda_s − lambda)). They share the step's noise, sigma_s·√(1 − exp(−2·tau²·h))·ξ. One
    evaluation a step; states are predicted points.

    Args:
        tau: 0 for the ODE, 1 for the reverse SDE; for all steps, or one for each. (Theirs is 1
            between two noise levels and 0 outside.)
        order: how many values of x̂ the predictor uses, 1 to 3.
        corrector_order: how many the corrector uses, the new one among them, 2 to 4; 1 leaves the
            corrector out.
        form: "exact" integrates a line exactly; "program" takes its slope's moment to be (1 +
            tau²)·h/2, as the authors' program and diffusers do. They differ by what an error of
            order 2 allows.
        lower_order_final: no step has a higher order than there are steps left.
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
    """Take every step by a predictor, and again by a corrector through x̂ where the predictor ended.

    Args:
        order, corrector: how many values, up to the step's start, predictor and corrector use;
            corrector 0 for none.
        eta: of the SDE, a number or one per step, as in `_data_multistep`; 0.0 for the ODE.
        line: `(a, moments)`: the moment of a line's slope, where predictor or corrector is a line.
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
