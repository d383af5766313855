import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import (
    integrals_of_polynomials,
    mixture_denoiser,
    normal,
    quantiles_of,
    states_of,
    tabulate,
)

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VariancePreservingCosine,
    adams_bashforth,
    ddim,
    deis,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    euler,
    graded_start,
    lms,
    sa_solver,
    sample_keys,
    uniform_grid,
    unipc,
)
from genjax.diffusion.samplers.multistep import exponential_moments

FLOW = RectifiedFlow()


def walk(reference, evaluate, step):
    """Call step(x, past times, past evaluations, next time) along the grid, newest first."""
    x, past, values, states = reference.start, [], [], [reference.start]
    for t, s in zip(reference.times[:-1], reference.times[1:], strict=True):
        past, values = [t, *past], [evaluate(x, t), *values]
        x = step(x, past, values, s)
        states.append(x)
    return states


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_against_its_integral(reference, order):
    def step(x, past, values, s):
        weights = integrals_of_polynomials(past[:order], past[0], s)
        return x + sum(w * v for w, v in zip(weights, values, strict=False))

    reference.check(adams_bashforth, walk(reference, reference.velocity, step), order=order)


@pytest.mark.parametrize(
    "order, textbook", [(2, [3 / 2, -1 / 2]), (3, [23, -16, 5]), (4, [55, -59, 37, -9])]
)
def test_adams_bashforth_on_equal_steps_has_the_textbooks_coefficients(float64, order, textbook):
    table = tabulate(adams_bashforth, FLOW, jnp.linspace(1.0, 0.0, 11), order=order)
    scale = {2: 1, 3: 12, 4: 24}[order]
    for row in range(order - 1, 10):
        # dx/dt = ẑ − x̂, and steps of −.1.
        np.testing.assert_allclose(-table.noise[row] / 0.1 * scale, textbook, rtol=1e-12)
        np.testing.assert_allclose(table.clean[row] / 0.1 * scale, textbook, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_against_its_integral(reference, order):
    rho = lambda t: reference.sigma(t) / reference.alpha(t)

    def step(x, past, values, s):
        weights = integrals_of_polynomials([rho(t) for t in past[:order]], rho(past[0]), rho(s))
        moved = sum(w * v for w, v in zip(weights, values, strict=False))
        return reference.alpha(s) * (x / reference.alpha(past[0]) + moved)

    reference.check(
        lms, walk(reference, lambda x, t: reference.predict(x, t)[1], step), order=order
    )


def test_lms_of_order_two_by_hand(float64):
    """EDM goes from sigma 4 to 2 and to 1.

    The line through ẑ at 4 and 2 has the mean ẑ_2 + (ẑ_2 − ẑ_4)/4 in the second step.

    That is its value at 1.5.
    """
    table = tabulate(lms, EDM(), jnp.array([4.0, 2.0, 1.0]), order=2)
    np.testing.assert_allclose(table.clean, [[1], [1]])
    # x_1 = x_2 − (5/4·ẑ_2 − 1/4·ẑ_4), and x_2 = x̂ + 2·ẑ_2.
    np.testing.assert_allclose(table.noise, [[2, 0], [3 / 4, 1 / 4]], rtol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_against_its_integral(reference, order):
    """The integral is in log(rho), with the exponential of it as the kernel of ẑ."""
    log_rho = lambda t: -reference.half_log_snr(t)

    def step(x, past, values, s):
        nodes = [log_rho(t) for t in past[:order]]
        weights = integrals_of_polynomials(nodes, log_rho(past[0]), log_rho(s), kernel=np.exp)
        moved = sum(w * v for w, v in zip(weights, values, strict=False))
        return reference.alpha(s) * (x / reference.alpha(past[0]) + moved)

    reference.check(
        deis, walk(reference, lambda x, t: reference.predict(x, t)[1], step), order=order
    )


def clean_of(reference):
    return lambda x, t: reference.predict(x, t)[0]


@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_dpm_solver_pp_2m_against_the_paper(reference, form):
    """Lu et al. 2022b, algorithm 2, and its variant with the line through x̂ integrated exactly."""

    def step(x, past, values, s):
        half = reference.half_log_snr
        h = half(s) - half(past[0])
        x = reference.sigma(s) / reference.sigma(past[0]) * x
        if len(past) == 1:
            return x - reference.alpha(s) * np.expm1(-h) * values[0]
        r = (half(past[0]) - half(past[1])) / h
        slope = (values[0] - values[1]) / r
        if form == "midpoint":
            return x - reference.alpha(s) * np.expm1(-h) * (values[0] + slope / 2)
        return x - reference.alpha(s) * (np.expm1(-h) * values[0] - (np.expm1(-h) / h + 1) * slope)

    reference.check(dpm_solver_pp_2m, walk(reference, clean_of(reference), step), form=form)


def test_dpm_solver_pp_3m_against_its_integral(reference):
    half = reference.half_log_snr

    def step(x, past, values, s):
        nodes = [half(t) for t in past[:3]]
        weights = integrals_of_polynomials(nodes, half(past[0]), half(s), kernel=np.exp)
        moved = sum(w * v for w, v in zip(weights, values, strict=False))
        return reference.sigma(s) * (x / reference.sigma(past[0]) + moved)

    reference.check(dpm_solver_pp_3m, walk(reference, clean_of(reference), step))


def test_dpm_solver_pp_3m_against_the_usual_programs(reference):
    """The programs use functions phi and divided differences, and halve the second of them."""
    half = reference.half_log_snr

    def step(x, past, values, s):
        h = half(s) - half(past[0])
        phi_1 = np.expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        x = (
            reference.sigma(s) / reference.sigma(past[0]) * x
            - reference.alpha(s) * phi_1 * values[0]
        )
        if len(past) == 1:
            return x
        r0 = (half(past[0]) - half(past[1])) / h
        first = (values[0] - values[1]) / r0
        if len(past) == 2:
            return x + reference.alpha(s) * phi_2 * first
        r1 = (half(past[1]) - half(past[2])) / h
        second = (first - (values[1] - values[2]) / r1) / (r0 + r1)
        return x + reference.alpha(s) * (phi_2 * (first + r0 * second) - phi_3 * second)

    states = walk(reference, clean_of(reference), step)
    reference.check(dpm_solver_pp_3m, states, curvature=0.5)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_the_sde_form_of_2m(reference, eta):
    """Its mean contracts by an additional e^{−eta·h}, and the noise restores the variance.

    For eta = 1 see DPM-Solver++ 2022b, section 5.
    """
    half = reference.half_log_snr
    keys = sample_keys(jax.random.key(0), jnp.arange(len(reference.start)))
    draws = (np.asarray(normal(keys, 2 * row + 1)) for row in range(len(reference.times) - 1))

    def step(x, past, values, s):
        h = half(s) - half(past[0])
        shrink = np.exp(-(1 + eta) * h)
        x = reference.sigma(s) / reference.sigma(past[0]) * np.exp(-eta * h) * x
        x = x + reference.alpha(s) * (1 - shrink) * values[0]
        if len(past) > 1:
            slope = (values[0] - values[1]) / (half(past[0]) - half(past[1])) * h
            x = x + reference.alpha(s) * (1 - shrink) / 2 * slope
        return x + reference.sigma(s) * np.sqrt(1 - np.exp(-2 * eta * h)) * next(draws)

    states = walk(reference, clean_of(reference), step)
    reference.check(dpm_solver_pp_2m, states, eta=eta, keys=keys)


@pytest.mark.parametrize("sampler", [dpm_solver_pp_2m, dpm_solver_pp_3m])
def test_without_eta_nothing_is_drawn(sampler, float64):
    times = uniform_grid(FLOW, 8)
    assert tabulate(sampler, FLOW, times).fresh is None
    # The same method, compiled for any eta.
    traced = jax.jit(lambda eta: sampler.table(FLOW, times, eta=eta))(0.0)
    np.testing.assert_array_equal(traced.fresh, 0)
    np.testing.assert_allclose(traced.noise, tabulate(sampler, FLOW, times).noise, rtol=1e-15)
    full = tabulate(sampler, FLOW, times, eta=1.0)
    np.testing.assert_allclose(full.fresh**2 + full.noise[:, 0] ** 2, times[1:] ** 2, rtol=1e-13)
    # From pure noise, all of the noise is drawn anew.
    assert full.noise[0, 0] == 0


@pytest.mark.parametrize(
    "process", [FLOW, VariancePreservingCosine()], ids=lambda p: type(p).__name__
)
def test_order_one_is_the_first_order_method(process, float64):
    x, times = jnp.asarray(quantiles_of(0.0, 1.0)), uniform_grid(process, 12)
    for first, sampler in [(euler, adams_bashforth), (ddim, lms), (ddim, deis)]:
        states = states_of(process, x, tabulate(sampler, process, times, order=1))
        expected = states_of(process, x, tabulate(first, process, times))
        np.testing.assert_allclose(states, expected, rtol=1e-14)


@pytest.mark.parametrize(
    "sampler, order", [(deis, 3), (dpm_solver_pp_2m, 2), (dpm_solver_pp_3m, 3), (unipc, 3)]
)
def test_lower_order_final(sampler, order, float64):
    times = jnp.linspace(0.9, 0.1, 7)
    predictor = dict(order=3, corrector=False) if sampler is unipc else {}
    full, lower = (
        tabulate(sampler, FLOW, times, lower_order_final=lower, **predictor)
        for lower in (False, True)
    )
    for a, b in ((full.clean, lower.clean), (full.noise, lower.noise)):
        np.testing.assert_array_equal(a[: 7 - order], b[: 7 - order])
    history = lower.noise if sampler is deis else lower.clean
    assert [int((row != 0).sum()) for row in history] == [
        min(i + 1, order, 6 - i) for i in range(6)
    ]


def test_infinite_pasts_drop_out(float64):
    """From t = 1 the first step has order 1.

    So has the second, for interpolation in the log-SNR.
    """
    times = uniform_grid(FLOW, 5)
    for table in (
        tabulate(deis, FLOW, times),
        tabulate(dpm_solver_pp_3m, FLOW, times),
        tabulate(lms, FLOW, times),
    ):
        history = max(table.clean, table.noise, key=lambda column: column.shape[1])
        assert [int((row != 0).sum()) for row in history[:3]] == [1, 1, 2]
        assert np.isfinite(history).all()


def test_exponential_moments_against_quadrature(float64):
    a = np.concatenate([-np.logspace(-9, 1.2, 40), [0.0], np.logspace(-9, 1.2, 40)])
    points, weights = np.polynomial.legendre.leggauss(60)
    tau = (points + 1) / 2
    expected = [
        [(x * np.exp(-x * (1 - tau)) * tau**k * weights).sum() / 2 for k in range(4)] for x in a
    ]
    np.testing.assert_allclose(exponential_moments(jnp.asarray(a), 4), expected, rtol=3e-13, atol=0)


def test_graded_start(float64):
    times = jnp.linspace(1.0, 0.0, 9)
    np.testing.assert_array_equal(graded_start(times, 2), times)
    np.testing.assert_allclose(graded_start(times, 3), np.insert(times, 1, 1 - 8**-0.5 / 8))
    np.testing.assert_allclose(
        graded_start(times, 4), np.insert(times, 1, [1 - 8**-1 / 8, 1 - 8 ** (-1 / 3) / 8])
    )


def test_mistakes_are_refused():
    x, times = jnp.zeros(3), uniform_grid(FLOW, 3)
    arguments = mixture_denoiser(FLOW), FLOW, x, times
    with pytest.raises(ValueError, match="order is one of 1, 2, 3, 4; got 5"):
        lms(*arguments, order=5)
    with pytest.raises(ValueError, match="form is one of 'midpoint', 'heun'; got 'Heun'"):
        dpm_solver_pp_2m(*arguments, form="Heun")
    with pytest.raises(ValueError, match="variant is one of 'bh1', 'bh2'; got 'bh3'"):
        unipc(*arguments, variant="bh3")
    with pytest.raises(ValueError, match="give it keys"):
        dpm_solver_pp_2m(*arguments, eta=1.0)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_against_the_paper(reference, order, corrector, variant):
    """Zhao et al. 2023, algorithms 1 and 2 for x̂.

    The weights of D/r solve linear systems, and both kinds of state are kept.
    """
    half = reference.half_log_snr

    def moved(x, past, values, s, new=None):
        h = half(s) - half(past[0])
        used = min(order, len(past))
        nodes = [(half(t) - half(past[0])) / h for t in past[1:used]]
        differences = [(v - values[0]) / r for v, r in zip(values[1:used], nodes, strict=True)]
        if new is not None:
            nodes, differences = [*nodes, 1.0], [*differences, new - values[0]]
        scale = -h if variant == "bh1" else np.expm1(-h)
        phi, system, right = np.expm1(-h) / -h - 1, [], []
        factorial = 1
        for k in range(len(nodes)):
            system.append(np.array(nodes) ** k)
            right.append(phi * factorial / scale)
            factorial *= k + 2
            phi = phi / -h - 1 / factorial
        weights = [0.5] if len(nodes) == 1 else np.linalg.solve(system, right) if nodes else []
        x = (
            reference.sigma(s) / reference.sigma(past[0]) * x
            - reference.alpha(s) * np.expm1(-h) * values[0]
        )
        return x - reference.alpha(s) * scale * sum(
            w * d for w, d in zip(weights, differences, strict=True)
        )

    predicted = state = reference.start
    past, values, states = [], [], [reference.start]
    for t, s in zip(reference.times[:-1], reference.times[1:], strict=True):
        value = reference.predict(predicted, t)[0]
        state = moved(state, past, values, t, new=value) if corrector and past else predicted
        past, values = [t, *past], [value, *values]
        predicted = moved(state, past, values, s)
        states.append(predicted)
    reference.check(unipc, states, order=order, corrector=corrector, variant=variant)


@pytest.mark.parametrize(
    "order, corrector_order, tau", [(2, 2, 1.0), (3, 4, 0.7), (1, 3, 1.0), (2, 1, 1.2)]
)
def test_sa_solver_against_the_paper(reference, order, corrector_order, tau):
    """Xue et al. 2023, equations 14 to 17, by quadrature, with one noise for both methods."""
    half, keys = (
        reference.half_log_snr,
        sample_keys(jax.random.key(0), jnp.arange(len(reference.start))),
    )

    def moved(x, t, s, nodes, values, xi):
        h = half(s) - half(t)
        kernel = lambda u: (1 + tau**2) * np.exp(u - tau**2 * (half(s) - u))
        weights = integrals_of_polynomials([half(node) for node in nodes], half(t), half(s), kernel)
        x = np.exp(-(tau**2) * h) * reference.sigma(s) / reference.sigma(t) * x
        x = x + reference.sigma(s) * sum(w * v for w, v in zip(weights, values, strict=True))
        return x + reference.sigma(s) * np.sqrt(1 - np.exp(-2 * tau**2 * h)) * xi

    predicted = state = reference.start
    past, values, states, xi = [], [], [reference.start], None
    for i, (t, s) in enumerate(zip(reference.times[:-1], reference.times[1:], strict=True)):
        value = reference.predict(predicted, t)[0]
        if corrector_order > 1 and past:
            used = corrector_order - 1
            state = moved(state, past[0], t, [t, *past[:used]], [value, *values[:used]], xi)
        else:
            state = predicted
        past, values = [t, *past], [value, *values]
        xi = np.asarray(normal(keys, 2 * i + 1))
        predicted = moved(state, t, s, past[:order], values[:order], xi)
        states.append(predicted)
    options = dict(order=order, corrector_order=corrector_order, tau=tau)
    reference.check(sa_solver, states, keys, **options)


def test_sa_solver_without_noise_is_unipc(float64):
    """With lines as in the authors' program it is unipc's "bh1".

    A tau for each step applies to its step.
    """
    times = uniform_grid(VariancePreservingCosine(), 10)[:-1]
    table = lambda sampler, **options: tabulate(
        sampler, VariancePreservingCosine(), times, lower_order_final=True, **options
    )
    found = table(sa_solver, tau=0.0, corrector_order=3, form="program")
    expected = table(unipc, variant="bh1")
    np.testing.assert_allclose(found.clean, expected.clean, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(found.noise, expected.noise)
    assert found.fresh is None
    by_step = sa_solver.table(
        VariancePreservingCosine(), times, jnp.where(np.arange(9) < 5, 0.0, 1.0)
    )
    np.testing.assert_array_equal(by_step.fresh[:5], 0)
    np.testing.assert_allclose(by_step.fresh[5:], table(sa_solver).fresh[5:], rtol=1e-15)


@pytest.mark.parametrize(
    "order, sampler",
    [(1, ddim), (2, dpm_solver_pp_2m), (3, dpm_solver_pp_3m)],
    ids=lambda p: getattr(p, "__name__", p),
)
def test_unipc_without_its_corrector_is_dpm_solver_pp(float64, order, sampler):
    """This holds through infinite ends too.

    Only its second step, a line, differs from 3M, by B/2.
    """
    times = uniform_grid(VariancePreservingCosine(), 9)
    found = tabulate(unipc, VariancePreservingCosine(), times, order=order, corrector=False)
    expected = tabulate(sampler, VariancePreservingCosine(), times)
    equal_rows = [row for row in range(9) if not (order == 3 and row == 2)]
    np.testing.assert_allclose(
        found.clean[np.array(equal_rows)], expected.clean[np.array(equal_rows)], rtol=1e-13
    )
    np.testing.assert_array_equal(found.noise, expected.noise)
    corrected = tabulate(unipc, VariancePreservingCosine(), times, order=order)
    # The first step, from infinity, is not corrected. The last, to the clean end, only ends on x̂.
    np.testing.assert_allclose(corrected.clean[:2, :order], expected.clean[:2], rtol=1e-13)
    assert (np.abs(corrected.clean[2:8, order]) > 1e-3).any()
    np.testing.assert_allclose(corrected.clean[8], [1] + [0] * order, atol=1e-15)
