import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from mixtures import optimized_jit, quick_jit
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    VariancePreservingLinear,
    VariancePreservingTable,
    bits_per_dimension,
    continuous_bound,
    dequantize,
    discrete_bound,
    log_likelihood,
    log_normal_sigma,
    optimal,
    sample_keys,
    uniform,
    uniform_grid,
)
from genjax.diffusion.processes import expand, linear_betas
from genjax.diffusion.targets import combine, score

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
FLOW = RectifiedFlow()
# alpha = .047 is left at the noise end.
VP_ENDING_EARLY = VariancePreservingCosine(domain=(0.0, 0.97))


def parameters():
    # Copy, because JAX shares a NumPy array with a live program, in the precision of that program.
    return tuple(jnp.asarray(a.copy()) for a in (WEIGHTS, MEANS, DEVIATIONS))


def cumulative(x):
    return np.sum(WEIGHTS * norm.cdf(np.asarray(x)[..., None], MEANS, DEVIATIONS), axis=-1)


@functools.partial(quick_jit, static_argnums=0)
def mixture_log_likelihood(process, x):
    denoiser = optimal.gaussian_mixture(process, *parameters())
    return log_likelihood(denoiser, process, x, rtol=1e-9, atol=1e-9)


# ---- The exact likelihood


def test_the_mixture_under_rectified_flow(float64):
    x = jnp.concatenate([jnp.array([-2.0, 0.0, 1.0]), jnp.linspace(-6, 7, 261)])
    result, latents = mixture_log_likelihood(FLOW, x)
    # Published to 8 digits.
    np.testing.assert_allclose(result[:3], [-1.42847607, -1.83321762, -1.05246992], atol=5e-9)
    # The trapezoidal rule is exact to rounding here. Tolerances of 1e-9 per step leave 1e-8.
    p, step = np.exp(result[3:]), 13 / 260
    np.testing.assert_allclose(np.sum(p) * step, 1, atol=1e-8)
    np.testing.assert_allclose(-np.sum(p * result[3:]) * step, 1.6369029, atol=5e-8)
    # In one dimension the flow is the increasing map from the mixture to the normal.
    np.testing.assert_allclose(norm.cdf(latents), cumulative(x), atol=1e-8)


def test_float32_data_while_float64_is_enabled(float64):
    weights, means, deviations = (jnp.asarray(a, jnp.float32) for a in (WEIGHTS, MEANS, DEVIATIONS))
    denoiser = optimal.gaussian_mixture(FLOW, weights, means, deviations)
    x = jnp.array([-2.0, 0.0, 1.0], jnp.float32)
    result, latents = quick_jit(lambda x: log_likelihood(denoiser, FLOW, x))(x)
    assert result.dtype == latents.dtype == jnp.float32
    # The tolerances allow six digits, and float32 has seven.
    np.testing.assert_allclose(result, [-1.42847607, -1.83321762, -1.05246992], atol=1e-5)


def test_a_table_may_take_more_steps(float64):
    """For data N(0, s²) the flow multiplies by √(v_1/v_0), with v = alpha²s² + sigma².

    The velocity jumps 1,000 times.
    """
    process, s = VariancePreservingTable(), 0.5
    denoiser = optimal.gaussian_mixture(process, jnp.ones(1), jnp.zeros(1), jnp.full(1, s))
    run = lambda x: log_likelihood(denoiser, process, x, rtol=1e-10, atol=1e-10, max_steps=2**15)
    (result,), (latent,) = optimized_jit(run)(jnp.array([0.3]))
    first, last = (
        float(np.hypot(process.alpha(t) * s, process.sigma(t)))
        for t in map(jnp.asarray, process.domain)
    )
    prior = norm.logpdf(latent, scale=process.sigma(jnp.asarray(1.0)))
    # There are more than 4,096 steps, each with an error up to 1e-10.
    np.testing.assert_allclose(latent, 0.3 * last / first, atol=4e-7)
    np.testing.assert_allclose(result, prior + np.log(last / first), atol=4e-7)


@pytest.mark.parametrize("process", [VP_ENDING_EARLY, EDM()], ids=lambda p: type(p).__name__)
def test_the_prior_is_the_only_error(process, float64):
    """With data at the noise end, log p errs by log p_1(x_1) − log N(x_1; 0, sigma²), exactly."""
    x = jnp.array([-3.0, -2.0, 0.0, 1.0, 2.0])
    result, latents = mixture_log_likelihood(process, x)
    start, end = (jnp.full(5, t) for t in process.domain)
    density = quick_jit(
        functools.partial(optimal.gaussian_mixture_log_density, process, *parameters())
    )
    exact, at_end = density(x, start), density(latents, end)
    missed = np.asarray(at_end) - norm.logpdf(latents, scale=process.sigma(end))
    assert np.abs(missed).max() > 1e-4  # large enough to be seen
    np.testing.assert_allclose(exact - result, missed, atol=1e-8)


PLANE = (
    np.array([0.2, 0.5, 0.3]),
    np.array([[-1.0, 0.5], [1.0, 1.0], [0.0, -1.5]]),
    np.array([0.3, 0.5, 0.4]),
)
POINTS = np.array([[0.3, -0.2], [-1.0, 0.9], [1.5, 1.0]])


def plane_log_likelihood(x, keys=None, tolerance=1e-7, **options):
    denoiser = optimal.gaussian_mixture(FLOW, *map(jnp.asarray, PLANE))
    options |= dict(rtol=tolerance, atol=tolerance)
    run = optimized_jit(lambda x, keys: log_likelihood(denoiser, FLOW, x, keys, **options)[0])
    return np.asarray(run(jnp.asarray(x), keys))


def plane_log_density(x):
    weights, means, deviations = PLANE
    each = norm.logpdf(x[:, None], means, deviations[:, None]).sum(-1)
    return logsumexp(np.log(weights) + each, axis=1)


def test_two_dimensions(float64):
    np.testing.assert_allclose(plane_log_likelihood(POINTS), plane_log_density(POINTS), atol=1e-6)


def test_hutchinson_is_unbiased(float64):
    size = 4000
    keys, x = sample_keys(jax.random.key(0), jnp.arange(3 * size)), np.repeat(POINTS, size, axis=0)
    deviations = []
    for options in ({}, {"probe": jax.random.normal, "num_probes": 4}):
        # The solver's error is far below that of the mean.
        result = plane_log_likelihood(x, keys, 1e-5, **options).reshape(3, size)
        deviations.append(result.std(1))
        error = result.std(1) / np.sqrt(size)
        assert error.min() > 1e-4  # there is something to average
        assert np.all(np.abs(result.mean(1) - plane_log_density(POINTS)) < 4 * error)
    one_sign, four_normals = deviations
    # For a symmetric Jacobian, a normal probe has the variance of a sign probe plus that of the
    # diagonal.
    assert np.all(one_sign / 2 < four_normals)


def test_each_sample_has_its_own_condition_and_key(float64):
    """The denoiser may hold conditions of the whole batch.

    A sample does not depend on its batch. Signs are exact for a diagonal Jacobian. Samples of label
    3 stand still, so the steps are those of the others.
    """
    centre, deviations = jnp.array([-1.0, 0.0, 2.0, 0.0]), jnp.array([0.5, 1.5])

    @quick_jit
    def run(x, labels, keys):
        def denoiser(x_t, t):
            alpha, sigma = expand(FLOW.alpha(t), x_t), expand(FLOW.sigma(t), x_t)
            variance = (alpha * deviations) ** 2 + sigma**2
            pull = (x_t - alpha * centre[labels][:, None]) / variance
            clean = centre[labels][:, None] + alpha * deviations**2 * pull
            moves = (labels < 3)[:, None]
            return Prediction(moves * clean, moves * sigma * pull)

        return log_likelihood(denoiser, FLOW, x, keys, rtol=1e-8, atol=1e-8)[0]

    x, labels = jnp.array([[0.1, -0.4], [0.3, 0.2], [1.0, 1.5]]), jnp.array([1, 0, 2])
    batch = x, labels, sample_keys(jax.random.key(0), jnp.arange(3))
    together, alone = run(*batch), run(*(a[jnp.array([2, 2, 2])] for a in batch))
    np.testing.assert_allclose(
        together, norm.logpdf(x, centre[labels][:, None], deviations).sum(1), atol=1e-7
    )
    np.testing.assert_allclose(alone, together[2], atol=1e-7)  # another sequence of steps
    among_still = run(jnp.tile(x[2], (3, 1)), jnp.array([2, 3, 3]), batch[2][jnp.array([2, 2, 2])])
    np.testing.assert_allclose(among_still[0], alone[0], rtol=1e-13)


def test_gradients(float64):
    """Gradients by parameters and data equal those of the density in closed form."""
    weights, means, deviations = parameters()
    x, t = jnp.array([-2.0, 0.4, 1.0]), jnp.zeros(3)

    def by_flow(means, x):
        denoiser = optimal.gaussian_mixture(FLOW, weights, means, deviations)
        return jnp.sum(log_likelihood(denoiser, FLOW, x, rtol=1e-8, atol=1e-8)[0])

    def in_closed_form(means, x):
        return jnp.sum(optimal.gaussian_mixture_log_density(FLOW, weights, means, deviations, x, t))

    expected = quick_jit(jax.grad(in_closed_form, (0, 1)))(means, x)
    for result, gradient in zip(
        quick_jit(jax.grad(by_flow, (0, 1)))(means, x), expected, strict=True
    ):
        # Tolerances hold for values, not for gradients.
        np.testing.assert_allclose(result, gradient, atol=1e-5)


# ---- The variational bound


def by_log_snr(highest, lowest):
    """Make the law of times whose log-SNR is uniform between two values."""
    return lambda process, u: process.time_at(highest + (lowest - highest) * u)


def grid_by_log_snr(process, highest, lowest, num_steps):
    return process.time_at(jnp.linspace(lowest, highest, num_steps + 1))


def averages(terms, copies):
    """Return the means over the copies of each example, and four standard errors."""
    terms = np.asarray(terms).reshape(-1, copies)
    return terms.mean(1), 4 * terms.std(1) / np.sqrt(copies)


X, S = np.array([-0.9, 0.2, 1.4]), 0.6  # data are N(0, S²), for which all terms are known


def gaussian_error(x, log_snr):
    """Return E‖z − ẑ‖² over z for the optimal denoiser, with alpha² + sigma² = 1.

    Every process has the same value.
    """
    alpha2, sigma2 = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    variance = alpha2 * S**2 + sigma2
    # z − ẑ = z·(1 − sigma²/v) − alpha·sigma·x/v
    return (alpha2 * S**2 / variance) ** 2 + alpha2 * sigma2 / variance**2 * x**2


@pytest.mark.parametrize(
    "process",
    [FLOW, EDM(domain=(0.002, 1000.0))],
    ids=lambda p: type(p).__name__,
)
def test_bounds_of_a_gaussian_term_by_term(process, float64):
    copies, highest, lowest, num_steps = 8000, 6.0, -9.0, 12
    x = jnp.repeat(jnp.asarray(X), copies)[:, None]
    denoiser = jax.jit(
        optimal.gaussian_mixture(process, jnp.ones(1), jnp.zeros((1, 1)), jnp.full(1, S))
    )
    times = grid_by_log_snr(process, highest, lowest, num_steps)
    law = by_log_snr(highest, lowest)
    discrete = jax.jit(lambda key, times: discrete_bound(key, denoiser, process, x, times))(
        jax.random.key(0), times
    )
    continuous = jax.jit(lambda key: continuous_bound(key, denoiser, process, x, law, num_times=8))(
        jax.random.key(1)
    )

    # Exact: SNR·x²/2 at the noise end, and the entropy of N(0, 1/SNR) at the clean end.
    for bound in (discrete, continuous):
        np.testing.assert_allclose(bound.prior, np.exp(lowest) / 2 * x[:, 0] ** 2, rtol=1e-11)
        np.testing.assert_allclose(
            bound.reconstruction, (np.log(2 * np.pi) - highest + 1) / 2, rtol=1e-11
        )
        total = bound.prior + bound.diffusion + bound.reconstruction
        np.testing.assert_allclose(bound.log_likelihood, -total, rtol=1e-12)

    log_snr = np.linspace(lowest, highest, num_steps + 1)
    # (SNR(s) − SNR(t))·‖x − x̂‖² = (SNR(s)/SNR(t) − 1)·‖z − ẑ‖².
    steps = np.expm1(np.diff(log_snr)) / 2
    result, error = averages(discrete.diffusion, copies)
    expected = np.sum(steps * gaussian_error(X[:, None], log_snr[:-1]), axis=1)
    assert np.all(np.abs(result - expected) < error) and np.all(error < 0.05 * expected)

    result, error = averages(continuous.diffusion, copies)
    expected = [
        quad(lambda log_snr, x=x: gaussian_error(x, log_snr) / 2, lowest, highest)[0] for x in X
    ]
    assert np.all(np.abs(result - expected) < error) and np.all(error < 0.05 * np.asarray(expected))


def test_bounds_of_the_mixture_lie_below_and_become_tight(float64):
    """The gap of T steps is known to second order in 1/T.

    The gap of the continuous bound is that of the ends, below .001.
    """
    copies, highest, lowest, num_steps = 10_000, 9.0, -9.0, 100
    points, exact = np.array([-2.0, 0.0, 1.0]), np.array([-1.42847607, -1.83321762, -1.05246992])
    x = jnp.repeat(jnp.asarray(points), copies)
    denoiser = optimal.gaussian_mixture(FLOW, *parameters())
    times = grid_by_log_snr(FLOW, highest, lowest, num_steps)

    @optimized_jit
    def bound(key, times):
        return discrete_bound(key, denoiser, FLOW, x, times).log_likelihood

    # A step of δ in log-SNR weighs its error by (e^δ − 1)/2 ≈ δ/2 + δ²/4. It takes the error at its
    # noisy end, where it is smaller by its growth, which is 1 over all steps. Together the gap is
    # δ/4·(∫‖z − ẑ‖² dλ − 1), and the integral is twice the diffusion term.
    diffusion = -exact - (np.log(2 * np.pi) - highest + 1) / 2
    result, error = averages(bound(jax.random.key(0), times), copies)
    gap, step = exact - result, (highest - lowest) / num_steps
    assert np.all(gap > error)  # clearly below
    higher_orders = step**2 * diffusion / 6
    assert np.all(np.abs(gap - step / 4 * (2 * diffusion - 1)) < error + higher_orders)

    law = by_log_snr(highest, lowest)
    bound = optimized_jit(
        lambda key: continuous_bound(key, denoiser, FLOW, x, law, 128).log_likelihood
    )
    result, error = averages(bound(jax.random.key(0)), copies)
    assert np.all(error < 0.04) and np.all(np.abs(exact - result) < error + 0.001)


def test_prior_term_of_ddpm(float64):
    """After the 1000 linear steps the prior term is 2.911e-5 bits per dimension where x² = 1."""
    process, denoiser = (
        VariancePreservingTable(betas=linear_betas()),
        lambda x_t, t: Prediction(x_t, x_t),
    )
    times = jnp.array([process.domain[1], 0.1])
    bound = discrete_bound(jax.random.key(0), denoiser, process, jnp.ones((1, 5, 4)), times)
    # As printed.
    np.testing.assert_allclose(bits_per_dimension(-bound.prior, 20), [2.911e-5], rtol=2e-4)


def test_the_continuous_bound_depends_on_the_log_snr_of_the_ends_alone(float64):
    """This holds for any law and any denoiser that knows time by its log-SNR, here a poor one."""
    highest, lowest, copies = 4.0, -3.0, 60_000
    x = jnp.repeat(jnp.array([-0.9, 1.4]), copies)[:, None]
    results, same = [], []
    for process in (FLOW, VariancePreservingCosine(), EDM()):
        ends = process.time_at(jnp.array([highest, lowest]))
        process = type(process)(domain=(float(ends[0]), float(ends[1])))

        def denoiser(x_t, t, process=process):
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            z_hat = jnp.sin(x_t / jnp.sqrt(alpha**2 + sigma**2)) + 0.1 * process.log_snr(t)[:, None]
            return Prediction((x_t - sigma * z_hat) / alpha, z_hat)

        @jax.jit
        def run(key, process=process, denoiser=denoiser):
            law = by_log_snr(highest, lowest)
            return (
                continuous_bound(key, denoiser, process, x, uniform, num_times=8),
                continuous_bound(jax.random.key(0), denoiser, process, x[:5], law).diffusion,
            )

        bound, few = run(jax.random.key(len(results)))
        results.append(averages(bound.diffusion, copies))
        np.testing.assert_allclose(bound.prior, np.exp(lowest) / 2 * x[:, 0] ** 2, rtol=1e-9)
        same.append(few)
    (flow, flow_error), *others = results
    for result, error in others:
        assert np.all(np.abs(result - flow) < np.hypot(error, flow_error)) and np.all(
            error < 0.1 * result
        )
    # The same draws at the same log-SNRs are equal up to rounding.
    for diffusion in same[1:]:
        np.testing.assert_allclose(diffusion, same[0], rtol=1e-9)


@pytest.mark.parametrize(
    "process",
    [RectifiedFlow(domain=(1e-3, 1.0)), VariancePreservingLinear(domain=(1e-3, 1.0)), EDM()],
    ids=lambda p: type(p).__name__,
)
def test_the_default_law_of_times_varies_little(process, float64):
    """The mean equals the integral. Uniform times have 3 to 20 times the deviation."""
    copies, num_times = 4000, 16
    x = jnp.repeat(jnp.asarray(X), copies)[:, None]
    denoiser = optimal.gaussian_mixture(process, jnp.ones(1), jnp.zeros((1, 1)), jnp.full(1, S))

    def bound(key, **law):
        return continuous_bound(key, denoiser, process, x, num_times=num_times, **law).diffusion

    default, others = (jax.jit(functools.partial(bound, **law)) for law in ({}, {"times": uniform}))
    diffusion = default(jax.random.key(0))
    result, error = averages(diffusion, copies)
    highest, lowest = (float(process.log_snr(jnp.asarray(t))) for t in process.domain)
    expected = [
        quad(lambda u, x=x: gaussian_error(x, u) / 2, max(lowest, -15), highest)[0] for x in X
    ]
    assert np.all(np.abs(result - expected) < error) and np.all(error < 0.05 * np.asarray(expected))
    deviation = diffusion.reshape(3, copies).std(1)
    assert np.all(deviation < 4)
    assert np.all(2 * deviation < others(jax.random.key(0)).reshape(3, copies).std(1))


def test_reconstruction_of_levels_against_an_integral(float64):
    """It is −E_z log p(level | x_t), with p by Bayes' rule and equal weights."""
    levels, t, copies = np.linspace(-1, 1, 17), 0.06, 20_000  # steps of 1/8, deviation .064
    chosen = np.array([0, 5, 16])
    # Two equal dimensions.
    x = jnp.repeat(jnp.asarray(levels)[chosen], copies)[:, None] * jnp.ones(2)

    def cost(x_t, index):
        log_p = norm.logpdf(x_t, (1 - t) * levels, t)
        return logsumexp(log_p) - log_p[index]

    expected = [
        2
        * quad(lambda z, i=i: norm.pdf(z) * cost((1 - t) * levels[i] + t * z, i), -9, 9, limit=200)[
            0
        ]
        for i in chosen
    ]
    denoiser = lambda x_t, t: Prediction(x_t, x_t)
    run = quick_jit(
        lambda times: (
            discrete_bound(
                jax.random.key(0), denoiser, FLOW, x, times, jnp.asarray(levels)
            ).reconstruction
        )
    )
    reconstruction = run(jnp.array([1.0, t]))
    result, error = averages(reconstruction, copies)
    assert np.all(np.abs(result - expected) < error) and np.all(error < 0.04 * np.asarray(expected))
    # It is minus the logarithm of a probability.
    assert np.all(reconstruction >= 0)
    # A wrong level would need an error of 12 deviations.
    np.testing.assert_allclose(run(jnp.array([1.0, 0.005])), 0, atol=1e-12)


def test_the_bound_is_the_entropy_of_equally_likely_levels(float64):
    """The optimal denoiser of discrete data needs log₂ 17 bits per dimension.

    The ends add 1e-4, and the draws have an error.
    """
    levels, copies = jnp.linspace(-1, 1, 17), 4000
    process = VariancePreservingCosine()
    x = jnp.tile(levels, copies)[:, None]
    denoiser = optimal.finite_data(process, levels[:, None])
    law = by_log_snr(12.0, -10.0)
    bound = optimized_jit(lambda key: continuous_bound(key, denoiser, process, x, law, 16, levels))(
        jax.random.key(0)
    )
    bits = np.asarray(bits_per_dimension(bound.log_likelihood, 1))
    error = 4 * bits.std() / np.sqrt(bits.size)
    assert error < 0.05 and abs(bits.mean() - np.log2(17)) < error + 1e-4


def test_times_that_reach_sigma_zero_or_leave_the_domain_are_refused():
    x, denoiser, key = jnp.zeros((2, 3)), lambda x_t, t: Prediction(x_t, x_t), jax.random.key(0)
    with pytest.raises(ValueError, match="times end at 0, where sigma = 0.*; stop them earlier"):
        discrete_bound(key, denoiser, FLOW, x, uniform_grid(FLOW, 4))
    with pytest.raises(
        ValueError, match="starts at 0, where sigma = 0 and the log-SNR is infinite"
    ):
        continuous_bound(key, denoiser, FLOW, x)
    with pytest.raises(ValueError, match="the time grid runs from 0.5 to 2"):
        discrete_bound(key, denoiser, FLOW, x, jnp.array([2.0, 0.5]))


def test_a_time_that_is_rounded_to_the_noise_end_has_a_finite_cost(monkeypatch):
    """(15 + 0.9999999)/16 is 1 in float32, where log(sigma/alpha) is infinite and has no slope."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.ones(shape, dtype))
    process, denoiser = RectifiedFlow(domain=(1e-3, 1.0)), lambda x_t, t: Prediction(x_t, x_t)
    bound = continuous_bound(
        jax.random.key(0), denoiser, process, jnp.ones((2, 3)), log_normal_sigma
    )
    assert jnp.isfinite(bound.diffusion).all()


def test_bounds_of_float32_data_while_float64_is_enabled(float64):
    """The grid is of float64 then, and the network of float32."""
    process, x = RectifiedFlow(domain=(0.1, 1.0)), jnp.ones(2, jnp.float32)
    times, denoiser = uniform_grid(process, 3), lambda x_t, t: Prediction(0 * x_t, x_t)
    bounds = discrete_bound(jax.random.key(0), denoiser, process, x, times)
    assert times.dtype == jnp.float64
    assert {term.dtype for term in bounds} == {jnp.dtype(jnp.float32)}


def test_data_of_bfloat16_are_those_in_float32():
    """In bfloat16, times near 1 would be rounded to 1."""
    process, x = RectifiedFlow(domain=(0.1, 1.0)), jnp.array([-1.0, 2.0], jnp.bfloat16)
    denoiser = optimal.gaussian_mixture(process, *map(jnp.float32, (WEIGHTS, MEANS, DEVIATIONS)))
    key, times = jax.random.key(0), uniform_grid(process, 3)
    evaluate = lambda x: (
        *log_likelihood(denoiser, process, x, rtol=1e-2, atol=1e-2),
        *discrete_bound(key, denoiser, process, x, times),
        *continuous_bound(key, denoiser, process, x),
    )
    both = quick_jit(lambda x: (evaluate(x), evaluate(x.astype(jnp.float32))))(x)
    for found, expected in zip(*both, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)


def test_a_network_is_no_denoiser_and_data_of_numpy_are_cast(unchecked_annotations):
    """Its float64 is cast without a warning, which would fail the test."""
    process, x = RectifiedFlow(domain=(0.1, 1.0)), np.ones((2, 3))
    network, key = (lambda x, t: x), jax.random.key(0)
    for bound in (
        lambda: log_likelihood(network, process, x),
        lambda: discrete_bound(key, network, process, x, uniform_grid(process, 3)),
        lambda: continuous_bound(key, network, process, x),
    ):
        with pytest.raises(ValueError, match="a denoiser returns a Prediction, and this one a"):
            bound()


# ---- Bits per dimension


def test_bits_of_uniform_levels():
    for levels, bits in ((256, 8.0), (17, np.log2(17))):
        width, dimensions = 2 / (levels - 1), 12
        probability = jnp.full(2, -dimensions * np.log(levels))
        np.testing.assert_allclose(bits_per_dimension(probability, dimensions), bits, rtol=1e-6)
        # All bins together reach from −1 − w/2 to 1 + w/2.
        density = jnp.full(2, -dimensions * np.log(2 + width))
        np.testing.assert_allclose(bits_per_dimension(density, dimensions, width), bits, rtol=1e-6)


def test_dequantized_values_fill_their_bins():
    levels, width = jnp.linspace(-1, 1, 17), 1 / 8
    index = np.random.default_rng(0).integers(0, 17, (200, 50))
    result = np.asarray(dequantize(jax.random.key(0), levels[index], width), np.float64)
    np.testing.assert_array_equal(np.rint((result + 1) / width), index)
    inside = (result - np.asarray(levels)[index]) / width + 0.5
    assert scipy.stats.kstest(inside.ravel(), "uniform").pvalue > 0.01


def test_bits_of_a_density_bound_those_of_the_bins(float64):
    """By Jensen, a bin's mean log density is below the log of its integral.

    The difference is small for a wide bin.
    """
    levels, width = np.linspace(-1, 1, 17), 1 / 8
    true = -np.log2(
        norm.cdf(levels + width / 2, scale=0.3) - norm.cdf(levels - width / 2, scale=0.3)
    )
    x = dequantize(jax.random.key(0), jnp.tile(jnp.asarray(levels), 20_000), width)
    bits = np.asarray(bits_per_dimension(jnp.asarray(norm.logpdf(x, scale=0.3)), 1, width))
    bits = bits.reshape(-1, 17)
    gap, error = bits.mean(0) - true, 4 * bits.std(0) / np.sqrt(len(bits))
    assert np.all(gap > -error)
    # To second order the gap is Var(log p in the bin)/2, minus curvature: at most (x·width/.09)²/24
    # nats.
    assert gap.max() < (1 / 0.09 * width) ** 2 / 24 / np.log(2) + 0.01
    assert gap[0] > error[0]  # visible at the steepest level


# ---- Denoising score matching


def test_denoising_and_explicit_score_matching_differ_by_a_constant(float64):
    """E‖s(x_t) + z/sigma‖² − E‖s(x_t) − ∇log p_t‖² is the same for all s (Vincent 2011).

    It is E‖z/sigma‖² − E‖∇log p_t‖². Expectations over data, noise and x_t are by quadrature, exact
    to rounding.
    """
    t = 0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    component, i, j = np.meshgrid([0, 1], range(60), range(60), indexing="ij")
    x = (MEANS[component] + DEVIATIONS[component] * nodes[i]).ravel()
    z = nodes[j].ravel()
    mass = (WEIGHTS[component] * weights[i] * weights[j]).ravel()
    grid = np.linspace(-12, 12, 2401)

    @quick_jit
    def of_the_law(x, z, grid):
        times, at_grid = jnp.full(len(x), t), jnp.full(len(grid), t)
        return (
            FLOW.corrupt(x, z, times),
            combine(FLOW, score, x, z, times),
            jnp.exp(optimal.gaussian_mixture_log_density(FLOW, *parameters(), grid, at_grid)),
            optimal.gaussian_mixture_score(FLOW, *parameters(), grid, at_grid),
        )

    x_t, target, density, exact = map(np.asarray, of_the_law(x, z, grid))
    model = lambda theta, x: theta[0] * jnp.sin(theta[1] * x) - theta[2] * x
    denoising, explicit = (
        quick_jit(jax.value_and_grad(loss))
        for loss in (
            lambda theta: jnp.sum(mass * (model(theta, x_t) - target) ** 2),
            lambda theta: jnp.sum(density * (model(theta, grid) - exact) ** 2) * 0.01,
        )
    )
    thetas = np.array([[0.5, 1.0, 0.3], [-1.0, 2.0, 1.0], [0.2, 0.5, -0.4]])
    constant = 1 / t**2 - np.sum(density * exact**2) * 0.01
    for theta in thetas:
        (loss, slope), (other, other_slope) = denoising(theta), explicit(theta)
        np.testing.assert_allclose(loss - other, constant, rtol=1e-9)
        np.testing.assert_allclose(slope, other_slope, atol=1e-9)
