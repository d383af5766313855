import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import mixture_denoiser, quantiles_at, states_of, tabulate

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VariancePreservingLinear,
    VariancePreservingScaledLinear,
    check_target,
    edm_heun,
    euler,
    heun,
    midpoint,
    rk4,
    samplers,
    uniform_grid,
    velocity,
)


def steps(times):
    return zip(times[:-1], times[1:], strict=True)


def test_midpoint_against_its_formula(reference):
    x, states = reference.start, [reference.start]
    for t, s in steps(reference.times):
        middle = x + (s - t) / 2 * reference.velocity(x, t)
        x = x + (s - t) * reference.velocity(middle, (t + s) / 2)
        states.append(x)
    reference.check(midpoint, states)


def test_heun_against_its_formula(reference):
    x, states = reference.start, [reference.start]
    for t, s in steps(reference.times):
        v = reference.velocity(x, t)
        x = x + (s - t) / 2 * (v + reference.velocity(x + (s - t) * v, s))
        states.append(x)
    reference.check(heun, states)


def test_rk4_against_its_formula(reference):
    x, states = reference.start, [reference.start]
    for t, s in steps(reference.times):
        h, v = s - t, reference.velocity
        k1 = v(x, t)
        k2 = v(x + h / 2 * k1, t + h / 2)
        k3 = v(x + h / 2 * k2, t + h / 2)
        k4 = v(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    reference.check(rk4, states)


def test_edm_heun_against_its_algorithm(reference):
    """Karras et al. 2022, algorithm 1 without churn, on x/alpha, with its Euler step at the end."""
    x, states, times = reference.start, [reference.start], reference.times
    for t, s in steps(times):
        rho, next_rho = (reference.sigma(u) / reference.alpha(u) for u in (t, s))
        scaled, slope = x / reference.alpha(t), reference.predict(x, t)[1]
        euler_step = scaled + (next_rho - rho) * slope
        if s != times[-1]:
            next_slope = reference.predict(reference.alpha(s) * euler_step, s)[1]
            euler_step = scaled + (next_rho - rho) / 2 * (slope + next_slope)
        x = reference.alpha(s) * euler_step
        states.append(x)
    reference.check(edm_heun, states)


def evaluations(sampler, process, times):
    return np.asarray(tabulate(sampler, process, times).times)


def test_how_often_and_where_the_network_is_evaluated():
    flow, times = RectifiedFlow(), jnp.array([1.0, 0.5, 0.0])
    np.testing.assert_array_equal(evaluations(midpoint, flow, times), [1, 0.75, 0.5, 0.25])
    # In float32 the last step, 0.55 + (0.1 − 0.55), ends below the domain by rounding.
    part = evaluations(heun, RectifiedFlow(domain=(0.1, 1.0)), jnp.array([1.0, 0.55, 0.1]))
    np.testing.assert_allclose(part, [1, 0.55, 0.55, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(
        evaluations(rk4, flow, times), [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0]
    )
    np.testing.assert_array_equal(evaluations(edm_heun, flow, times), [1, 0.5, 0.5])  # 2N − 1


def test_edm_heun_ends_on_the_clean_prediction(float64):
    process, x = EDM(), jnp.linspace(-1.0, 1.0, 5) * 80
    denoiser = mixture_denoiser(process)
    times = jnp.array([80.0, 3.0, 0.1, 0.0])
    states = edm_heun(denoiser, process, x, times, trajectory=True)
    np.testing.assert_allclose(states[-1], denoiser(states[-2], jnp.full(5, 0.1)).clean, rtol=1e-14)


def test_a_step_out_of_the_domain_is_eulers(float64):
    """EDM's network does not know sigma = 0, so nothing is evaluated there or below the domain."""
    process = EDM(domain=(0.1, 80.0))
    times, x = uniform_grid(process, 4), jnp.linspace(-100.0, 100.0, 5)
    walk = lambda sampler, x, times: states_of(process, x, tabulate(sampler, process, times))
    for sampler in (midpoint, heun, rk4):
        assert tabulate(sampler, process, times).times.min() == 0.1
        states = walk(sampler, x, times)
        np.testing.assert_allclose(states[-1], walk(euler, states[-2], times[-2:])[-1], rtol=1e-14)
        np.testing.assert_allclose(states[:-1], walk(sampler, x, times[:-1]), rtol=1e-14)
        assert np.abs(states[-2] - walk(euler, x, times)[-2]).max() > 1e-3


@pytest.mark.parametrize("process", [VariancePreservingLinear(), VariancePreservingScaledLinear()])
def test_a_step_to_an_infinite_velocity_is_eulers(process, float64):
    """sigma' is infinite at these clean ends, so the last step is Euler's, with ẑ from t."""
    times, x = uniform_grid(process, 16), jnp.asarray(quantiles_at(process, 1.0))
    for sampler in (heun, rk4):
        table = tabulate(sampler, process, times)
        assert all(np.isfinite(column).all() for column in jax.tree.leaves(table))
        # The network is not evaluated where the velocity is singular.
        check_target(process, velocity, jnp.asarray(table.times))
        states = states_of(process, x, table)
        last = states_of(process, jnp.asarray(states[-2]), tabulate(euler, process, times[-2:]))[-1]
        np.testing.assert_allclose(states[-1], last, rtol=1e-14)
        inside = np.abs(states[-2] - quantiles_at(process, float(times[-2]))).max()
        assert inside < {heun: 0.1, rk4: 1e-3}[sampler]


@pytest.mark.parametrize("sampler", [euler, heun, rk4, samplers.adams_bashforth])
def test_steps_from_an_infinite_velocity_are_refused(sampler):
    """This is an error for concrete times, also if only the table is requested."""
    process = VariancePreservingLinear()
    message = f"{sampler.__name__} has infinite coefficients at t = 0; give the process a domain"
    with pytest.raises(ValueError, match=message):
        sampler(mixture_denoiser(process), process, jnp.ones(3), jnp.linspace(0.0, 1.0, 5))
    with pytest.raises(ValueError, match=message):
        sampler.table(process, jnp.linspace(0.0, 1.0, 5))
