"""The adaptive solver against the exact flow of a mixture, which keeps its quantiles."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from mixtures import quick_jit

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    adaptive_solution,
    uniform_grid,
)
from genjax.diffusion.samplers import adaptive

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
QUANTILES = (np.arange(16) + 0.5) / 16
FLOW = RectifiedFlow()
# The start is the quantiles of the exact law at the first time. It is compared with the last law.
CASES = {
    "flow": (FLOW, [1.0, 0.6, 0.2, 0.0]),
    "cosine": (VariancePreservingCosine(), [1.0, 0.6, 0.2, 0.0]),
    "edm": (EDM(), [80.0, 2.0, 0.5, 0.002]),
    "inversion": (FLOW, [0.0, 0.2, 0.6, 1.0]),
}


def mixture_denoiser(process):
    def denoise(x_t, t):
        # As closure constants these would be float64 for diffrax, even where jax has only float32.
        weights, means, deviations = (
            jnp.asarray(a, x_t.dtype) for a in (WEIGHTS, MEANS, DEVIATIONS)
        )
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = (alpha * deviations) ** 2 + sigma**2
        residual = x_t[:, None] - alpha * means
        posterior = jax.nn.softmax(
            jnp.log(weights) - jnp.log(variance) / 2 - residual**2 / (2 * variance)
        )
        clean = means + alpha * deviations**2 / variance * residual
        return Prediction(
            jnp.sum(posterior * clean, 1), jnp.sum(posterior * sigma / variance * residual, 1)
        )

    return denoise


def quantiles(process, t):
    """Return x_t with F_t(x_t) = q, by root finding."""
    alpha, sigma = float(process.alpha(jnp.asarray(t))), float(process.sigma(jnp.asarray(t)))
    deviations = np.sqrt((alpha * DEVIATIONS) ** 2 + sigma**2)
    excess = lambda x, q: WEIGHTS @ scipy.special.ndtr((x - alpha * MEANS) / deviations) - q
    return np.array(
        [scipy.optimize.brentq(excess, -500, 500, args=(q,), xtol=1e-13) for q in QUANTILES]
    )


@pytest.mark.parametrize("case", CASES)
def test_the_error_keeps_the_tolerances(case, float64):
    """At every time of the grid the error is within ten times the tolerance.

    A tolerance is that of one step, and there are ten or more steps.
    """
    process, times = CASES[case]
    exact = np.stack([quantiles(process, t) for t in times])
    solve = quick_jit(
        lambda tolerance: adaptive(
            mixture_denoiser(process),
            process,
            jnp.asarray(exact[0]),
            jnp.array(times),
            trajectory=True,
            rtol=tolerance,
            atol=tolerance,
        )
    )
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = solve(tolerance)
        np.testing.assert_array_equal(found[0], exact[0])
        errors.append(np.abs((found - exact) / (1 + np.abs(exact))).max())
        assert errors[-1] < 10 * tolerance
    assert errors[0] > 20 * errors[1] > 400 * errors[2]


def test_rtol_is_of_the_state_and_atol_is_not(float64):
    """A linear field takes the same steps at any scale, if the tolerance has this scale, too."""

    def linear(x_t, t):
        """Return the denoiser of data N(0, 0.25)."""
        variance = (1 - t) ** 2 / 4 + t**2
        return Prediction((1 - t) / 4 / variance * x_t, t / variance * x_t)

    @quick_jit
    def solve(scale, rtol, atol):
        start, times = scale * jnp.array([-0.5, 1.0, 2.0]), uniform_grid(FLOW, 1)
        solution = adaptive_solution(linear, FLOW, start, times, rtol=rtol, atol=atol)
        return solution.ys[-1] / scale, solution.stats["num_steps"]

    relative, absolute = solve(1.0, 1e-4, 0.0), solve(1.0, 0.0, 1e-4)
    np.testing.assert_array_equal(solve(1024.0, 1e-4, 0.0)[0], relative[0])
    np.testing.assert_array_equal(solve(1024.0, 0.0, 1024e-4)[0], absolute[0])
    assert solve(1024.0, 0.0, 1e-4)[1] > 2 * absolute[1]


def test_a_clean_end_outside_the_domain_is_reached_by_ddim(float64):
    """EDM ends at sigma = 0, at the mean of the data given x at .002.

    That is less than .002 from the quantile of x.
    """
    process, start = EDM(), jnp.asarray(quantiles(EDM(), 80.0))
    solve = functools.partial(adaptive, mixture_denoiser(process), process, rtol=1e-8, atol=1e-8)
    trajectory = quick_jit(functools.partial(solve, trajectory=True))
    found = np.asarray(trajectory(start, jnp.array([80.0, 0.5, 0.002, 0.0])))
    before = jnp.asarray(quantiles(process, 0.002))
    expected = mixture_denoiser(process)(before, jnp.full(16, 0.002)).clean
    np.testing.assert_allclose(found[2], before, atol=1e-7)
    np.testing.assert_allclose(found[3], expected, atol=1e-7)
    np.testing.assert_array_equal(found[3], quick_jit(solve)(start, jnp.array([80.0, 0.0])))
    known = adaptive.evaluation_times(process, jnp.array([80.0, 1.0, 0.0]))
    np.testing.assert_array_equal(known, [80, 1, 0.002])


def test_evaluations_are_those_reported(float64):
    calls = []

    def counting(x_t, t):
        jax.debug.callback(lambda: calls.append(None))
        return mixture_denoiser(FLOW)(x_t, t)

    noise, times = jnp.asarray(quantiles(FLOW, 1.0)), uniform_grid(FLOW, 4)
    solution = adaptive_solution(counting, FLOW, noise, times, rtol=1e-6, atol=1e-6)
    jax.effects_barrier()
    steps = int(solution.stats["num_steps"])
    assert 10 < steps < 40
    # Two more evaluations before the first step choose its size.
    assert 6 * steps <= len(calls) <= 6 * steps + 3


def test_derivatives_both_ways(float64):
    """Derivatives by the start and by a network parameter equal finite differences."""
    noise, times, step = jnp.array([0.5, -1.2, 2.0]), jnp.array([1.0, 0.1]), 1e-3

    def sample(noise, slope, adjoint=diffrax.RecursiveCheckpointAdjoint):
        clean = lambda x_t: jnp.tanh(slope * x_t)
        denoiser = lambda x_t, t: Prediction(clean(x_t), (x_t - (1 - t) * clean(x_t)) / t)
        return jnp.sum(
            adaptive(denoiser, FLOW, noise, times, rtol=1e-7, atol=1e-7, adjoint=adjoint) ** 2
        )

    # The square of `step`, and the tolerance over `step`, are below 2e-4.
    value = quick_jit(sample)
    backward = quick_jit(jax.grad(sample, (0, 1)))(noise, 0.7)
    in_slope = (value(noise, 0.7 + step) - value(noise, 0.7 - step)) / (2 * step)
    np.testing.assert_allclose(backward[1], in_slope, rtol=2e-4)
    shift = step * jnp.array([0.0, 1.0, 0.0])
    in_start = (value(noise + shift, 0.7) - value(noise - shift, 0.7)) / (2 * step)
    np.testing.assert_allclose(backward[0][1], in_start, rtol=2e-4)
    forward = quick_jit(
        lambda a: jax.jvp(lambda a: sample(noise, a, diffrax.ForwardMode), (a,), (1.0,))[1]
    )
    np.testing.assert_allclose(forward(0.7), backward[1], rtol=1e-8)


def test_nothing_recompiles_and_each_sample_keeps_the_tolerance(float64):
    """The batch is one system, so a single sample takes other steps, within the tolerance."""
    traces = []

    @quick_jit
    def solve(noise, times, tolerance):
        traces.append(None)
        options = dict(rtol=tolerance, atol=tolerance)
        return adaptive(mixture_denoiser(FLOW), FLOW, noise, times, **options)

    exact, noise = quantiles(FLOW, 0.0), jnp.asarray(quantiles(FLOW, 1.0))
    together = solve(noise, uniform_grid(FLOW, 4), 1e-7)
    solve(noise, uniform_grid(FLOW, 4, 3.0), 1e-7)
    coarse = solve(noise, uniform_grid(FLOW, 4), 1e-2)
    assert len(traces) == 1
    assert np.abs(coarse - exact).max() > 10 * np.abs(together - exact).max()
    # One hard sample, between the mixture's halves, is among many easy ones. A mean over the batch
    # would ignore it.
    crowd = solve(jnp.full(4096, noise[-1]).at[0].set(noise[4]), uniform_grid(FLOW, 4), 1e-7)
    alone = solve(jnp.full(16, noise[4]), uniform_grid(FLOW, 4), 1e-7)
    assert np.abs(together[4] - exact[4]) < 1e-6
    assert np.abs(crowd[0] - exact[4]) < 1e-6
    assert np.abs(alone[0] - exact[4]) < 1e-6
    assert crowd[0] != together[4]


def test_float32_and_more_axes():
    noise = jnp.asarray(quantiles(FLOW, 1.0), jnp.float32).reshape(4, 2, 2)

    def denoiser(x_t, t):
        flat = mixture_denoiser(FLOW)(x_t.reshape(-1), jnp.repeat(t, 4))
        return Prediction(flat.clean.reshape(x_t.shape), flat.noise.reshape(x_t.shape))

    solvers = []
    found = adaptive(
        denoiser,
        FLOW,
        noise,
        uniform_grid(FLOW, 1),
        keys=jax.random.split(jax.random.key(0), 4),
        solver=lambda: solvers.append(diffrax.Tsit5()) or solvers[0],
    )
    assert found.dtype == jnp.float32 and len(solvers) == 1
    np.testing.assert_allclose(
        found.reshape(-1), quantiles(FLOW, 0.0), atol=2e-3
    )  # a sample here has four dimensions


def test_a_grid_outside_the_domain_is_refused():
    with pytest.raises(ValueError, match="the time grid runs from 0 to 2"):
        adaptive(mixture_denoiser(FLOW), FLOW, jnp.zeros(4), jnp.array([2.0, 0.0]))
