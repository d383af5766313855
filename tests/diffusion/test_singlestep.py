import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from mixtures import integrals_of_polynomials, mixture_denoiser, quantiles_of, states_of, tabulate

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VariancePreservingCosine,
    ddim,
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2s,
    dpm_solver_pp_3s,
    lms,
)

FLOW = RectifiedFlow()


def inner_time(reference, t, s, fraction):
    """Return the time at `fraction` of the step from t to s in the log-SNR, by root finding."""
    half = reference.half_log_snr
    goal = half(t) + fraction * (half(s) - half(t))
    return scipy.optimize.brentq(lambda u: half(u) - goal, s, t, xtol=1e-16, rtol=1e-15)


def walk(reference, step):
    x, states = reference.start, [reference.start]
    for t, s in zip(reference.times[:-1], reference.times[1:], strict=True):
        x = step(x, t, s)
        states.append(x)
    return states


def constant_noise_step(reference, x, t, s, noise):
    """Move x_t to x_s with constant ẑ (Lu et al. 2022a, equation 3.7)."""
    h = reference.half_log_snr(s) - reference.half_log_snr(t)
    return reference.alpha(s) / reference.alpha(t) * x - reference.sigma(s) * np.expm1(h) * noise


def test_dpm_solver_1_against_the_paper(reference):
    step = lambda x, t, s: constant_noise_step(reference, x, t, s, reference.predict(x, t)[1])
    states = walk(reference, step)
    reference.check(dpm_solver_1, states)
    reference.check(ddim, states)


def test_first_order_steps_of_both_solvers_and_ddim_are_the_same(reference):
    """DPM-Solver-1 (of ẑ), DPM-Solver++ of order 1 (of x̂) and Euler in (x/alpha, rho) agree."""

    def step(x, t, s):
        h = reference.half_log_snr(s) - reference.half_log_snr(t)
        clean = reference.predict(x, t)[0]
        return (
            reference.sigma(s) / reference.sigma(t) * x - reference.alpha(s) * np.expm1(-h) * clean
        )

    states = walk(reference, step)
    reference.check(dpm_solver_1, states)
    reference.check(lms, states, order=1)


def test_dpm_solver_2_against_the_paper(reference):
    """Lu et al. 2022a, algorithm 1 with r = 1/2, in its literal form."""

    def step(x, t, s):
        middle = inner_time(reference, t, s, 1 / 2)
        u = constant_noise_step(reference, x, t, middle, reference.predict(x, t)[1])
        return constant_noise_step(reference, x, t, s, reference.predict(u, middle)[1])

    reference.check(dpm_solver_2, walk(reference, step))


def test_dpm_solver_3_against_the_paper(reference):
    """Lu et al. 2022a, algorithm 2, with r1 = 1/3 and r2 = 2/3."""

    def step(x, t, s):
        h = reference.half_log_snr(s) - reference.half_log_snr(t)
        first, second = inner_time(reference, t, s, 1 / 3), inner_time(reference, t, s, 2 / 3)
        noise = reference.predict(x, t)[1]
        u = constant_noise_step(reference, x, t, first, noise)
        change = reference.predict(u, first)[1] - noise
        slope = 2 * (np.expm1(2 / 3 * h) / (2 / 3 * h) - 1)
        u = (
            constant_noise_step(reference, x, t, second, noise)
            - reference.sigma(second) * slope * change
        )
        change = reference.predict(u, second)[1] - noise
        slope = 3 / 2 * (np.expm1(h) / h - 1)
        return constant_noise_step(reference, x, t, s, noise) - reference.sigma(s) * slope * change

    reference.check(dpm_solver_3, walk(reference, step))


def test_dpm_solver_pp_2s_against_the_paper(reference):
    """Lu et al. 2022b, algorithm 1 with r = 1/2, where D is the value at the middle."""

    def step(x, t, s):
        def move(clean, end):
            h = reference.half_log_snr(end) - reference.half_log_snr(t)
            return (
                reference.sigma(end) / reference.sigma(t) * x
                - reference.alpha(end) * np.expm1(-h) * clean
            )

        middle = inner_time(reference, t, s, 1 / 2)
        u = move(reference.predict(x, t)[0], middle)
        return move(reference.predict(u, middle)[0], s)

    reference.check(dpm_solver_pp_2s, walk(reference, step))


def test_dpm_solver_pp_3s_is_that_of_x(reference):
    """It is the equation of `dpm_solver_3` for x̂.

    The integrals are of lines through x̂ at the start and at the newest point.
    """
    half = reference.half_log_snr

    def step(x, t, s):
        clean, nodes = reference.predict(x, t)[0], [t]
        values = [clean]
        for end in (inner_time(reference, t, s, 1 / 3), inner_time(reference, t, s, 2 / 3), s):
            pair = [(half(nodes[0]), values[0])] + [(half(nodes[-1]), values[-1])] * (
                len(nodes) > 1
            )
            lines = integrals_of_polynomials(
                [u for u, _ in pair], half(t), half(end), kernel=np.exp
            )
            moved = sum(w * v for w, (_, v) in zip(lines, pair, strict=True))
            u = reference.sigma(end) * (x / reference.sigma(t) + moved)
            if end != s:
                nodes, values = [*nodes, end], [*values, reference.predict(u, end)[0]]
        return u

    reference.check(dpm_solver_pp_3s, walk(reference, step))


@pytest.mark.parametrize("sampler, half", [(dpm_solver_pp_2s, 0), (dpm_solver_2, 1)])
def test_on_the_grids_own_times(reference, sampler, half):
    """The orders are 1, 2, 1, 2, …, 1.

    The second step of a pair starts where the pair starts. The last step is a single one.
    """
    log_snr, start = reference.half_log_snr, None
    x, states = reference.start, [reference.start]
    for i, (t, s) in enumerate(zip(reference.times[:-1], reference.times[1:], strict=True)):
        value = reference.predict(x, t)[half]
        if i % 2 == 0:
            start = x, value, t
            moving = value
        else:
            r = (log_snr(t) - log_snr(start[2])) / (log_snr(s) - log_snr(start[2]))
            moving = start[1] + (value - start[1]) / (2 * r)
        h = log_snr(s) - log_snr(start[2])
        alpha, sigma = (f(s) / f(start[2]) for f in (reference.alpha, reference.sigma))
        if half == 0:
            x = sigma * start[0] - reference.alpha(s) * np.expm1(-h) * moving
        else:
            x = alpha * start[0] - reference.sigma(s) * np.expm1(h) * moving
        states.append(x)
    reference.check(sampler, states, on_grid=True)


@pytest.mark.parametrize(
    "sampler, order", [(dpm_solver_2, 2), (dpm_solver_pp_2s, 2), (dpm_solver_3, 3)]
)
def test_steps_from_or_to_infinity_have_first_order(float64, sampler, order):
    x = jnp.asarray(quantiles_of(0.0, 1.0))
    for process in (FLOW, VariancePreservingCosine()):
        times = jnp.array([1.0, 0.4, 0.0])
        finer = jnp.append(
            jnp.concatenate([jnp.linspace(a, b, order + 1)[:-1] for a, b in ((1, 0.4), (0.4, 0))]),
            0.0,
        )
        table = tabulate(sampler, process, times)
        np.testing.assert_allclose(table.times, finer[:-1], rtol=1e-15)
        states = states_of(process, x, table)
        expected = states_of(process, x, tabulate(ddim, process, finer))
        np.testing.assert_allclose(states[1], expected[order], rtol=1e-13)
        # Ends on x̂.
        np.testing.assert_allclose(table.clean[-1], [1] + [0] * (order - 1), atol=1e-15)
        if order == 2:  # with order 3, two of the three inner steps of the last step are finite
            np.testing.assert_allclose(states[2], expected[4], rtol=1e-13)


def test_nothing_is_evaluated_outside_the_domain(float64):
    """EDM ends at sigma = 0. The last step evaluates twice where it starts, and ends on x̂."""
    process, times = EDM(), jnp.array([80.0, 2.0, 0.002, 0.0])
    for sampler in (dpm_solver_2, dpm_solver_3, dpm_solver_pp_2s):
        table = tabulate(sampler, process, times)
        assert table.times.min() == 0.002
        states = sampler(
            mixture_denoiser(process), process, jnp.linspace(-80.0, 80.0, 5), times, trajectory=True
        )
        expected = mixture_denoiser(process)(states[-2], jnp.full(5, 0.002)).clean
        np.testing.assert_allclose(states[-1], expected, rtol=1e-13)


def test_the_network_is_evaluated_at_equal_steps_of_the_log_snr(float64):
    times = jnp.array([0.9, 0.5, 0.2])
    for sampler, order in ((dpm_solver_2, 2), (dpm_solver_3, 3)):
        log_snr = FLOW.log_snr(jnp.append(tabulate(sampler, FLOW, times).times, 0.2))
        np.testing.assert_allclose(np.diff(log_snr[: order + 1], 2), 0, atol=1e-13)
        np.testing.assert_allclose(np.diff(log_snr[order:], 2), 0, atol=1e-13)
        assert len(tabulate(sampler, FLOW, times, on_grid=True).times) == 2
