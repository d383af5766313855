import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    ddim,
    euler,
    guide,
    predict,
    sample_keys,
    uniform_grid,
    velocity,
)

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
FLOW = RectifiedFlow()


def mixture_denoiser(process):
    """The exact one for a mixture of Gaussians in one dimension: E[x | x_t] and E[z | x_t]."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = alpha**2 * DEVIATIONS**2 + sigma**2  # [batch, component]
        residual = x_t[:, None] - alpha * MEANS
        logits = np.log(WEIGHTS) - jnp.log(variance) / 2 - residual**2 / (2 * variance)
        posterior = jax.nn.softmax(logits)
        clean = MEANS + alpha * DEVIATIONS**2 / variance * residual
        return Prediction(jnp.sum(posterior * clean, 1), jnp.sum(posterior * sigma / variance * residual, 1))

    return denoise


def gaussian_denoiser(process, deviation):
    """The exact one for data N(0, deviation²)."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = alpha**2 * deviation**2 + sigma**2
        return Prediction(alpha * deviation**2 / variance * x_t, sigma / variance * x_t)

    return denoise


@pytest.fixture
def starts(float64):
    return jnp.asarray(scipy.stats.norm.ppf((np.arange(64) + 0.5) / 64))


@functools.cache
def monotone_map():
    """F⁻¹(Φ(z)) at the starts, by root finding: where the exact flow ends in one dimension."""

    def excess(x, quantile):
        return WEIGHTS @ scipy.stats.norm.cdf((x - MEANS) / DEVIATIONS) - quantile

    quantiles = (np.arange(64) + 0.5) / 64
    return np.array([scipy.optimize.brentq(excess, -9, 9, args=(q,), xtol=1e-13) for q in quantiles])


@pytest.mark.parametrize("num_steps, expected", [(16, 0.31651), (256, 0.022581)])
def test_euler_error_on_a_mixture(starts, num_steps, expected):
    samples = euler(mixture_denoiser(FLOW), FLOW, starts, uniform_grid(FLOW, num_steps))
    np.testing.assert_allclose(np.abs(samples - monotone_map()).max(), expected, rtol=3e-5)  # as printed


def test_one_step_of_euler_lands_on_the_mean(starts):
    """At t = 1 the velocity is x_t − E[x], whatever the data; here E[x] = .1."""
    samples = euler(mixture_denoiser(FLOW), FLOW, starts, uniform_grid(FLOW, 1))
    np.testing.assert_allclose(samples, 0.1, atol=1e-14)


@pytest.mark.parametrize("num_steps", [1, 5, 10])  # rounding adds up over more
def test_euler_is_ddim_for_rectified_flow(starts, num_steps):
    arguments = mixture_denoiser(FLOW), FLOW, starts, uniform_grid(FLOW, num_steps)
    np.testing.assert_allclose(euler(*arguments), ddim(*arguments), atol=2e-15, rtol=0)


def test_each_sampler_against_its_own_equation(starts):
    """On a variance preserving process: Euler in t, and DDIM as Euler in (x/alpha, sigma/alpha)."""
    process = VariancePreservingCosine(domain=(0.0, 0.9))
    denoiser, times = jax.jit(mixture_denoiser(process)), uniform_grid(process, 6)
    x_euler = x_ddim = np.asarray(starts)
    for t, s in zip(np.asarray(times[:-1]), np.asarray(times[1:]), strict=True):
        angle, next_angle = np.pi / 2 * t, np.pi / 2 * s
        clean, noise, _ = denoiser(jnp.asarray(x_euler), jnp.full(64, t))
        x_euler = x_euler + (s - t) * np.pi / 2 * (np.cos(angle) * noise - np.sin(angle) * clean)
        noise = denoiser(jnp.asarray(x_ddim), jnp.full(64, t)).noise
        x_ddim = np.cos(next_angle) * (x_ddim / np.cos(angle) + (np.tan(next_angle) - np.tan(angle)) * noise)
    np.testing.assert_allclose(euler(denoiser, process, starts, times), x_euler, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ddim(denoiser, process, starts, times), x_ddim, rtol=1e-12, atol=1e-13)
    assert np.abs(x_euler - x_ddim).max() > 0.01


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_samplers_converge_for_gaussian_data(process, sampler, float64):
    """The flow keeps x_t over its deviation; from N(0, 1) it ends at x·s for rectified flow and VP."""
    s = 0.6
    deviation = lambda t: np.sqrt(float(process.alpha(t)) ** 2 * s**2 + float(process.sigma(t)) ** 2)
    noise = process.sigma(jnp.asarray(1.0)) * jnp.linspace(-2, 2, 5)[:, None]
    ratio = deviation(jnp.asarray(0.0)) / deviation(jnp.asarray(1.0))
    if not isinstance(process, VarianceExploding):
        assert ratio == s
    errors = []
    for num_steps in (200, 400):
        samples = sampler(gaussian_denoiser(process, s), process, noise, uniform_grid(process, num_steps))
        errors.append(np.abs(samples - ratio * noise).max())
    assert errors[1] < 0.1
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)  # first order, to this very limit


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_trajectory_has_the_state_at_every_time(starts, sampler):
    arguments = mixture_denoiser(FLOW), FLOW, starts, uniform_grid(FLOW, 5)
    trajectory = sampler(*arguments, trajectory=True)
    assert trajectory.shape == (6, 64)
    np.testing.assert_array_equal(trajectory[0], starts)
    np.testing.assert_array_equal(trajectory[-1], sampler(*arguments))
    np.testing.assert_allclose(trajectory[2], sampler(*arguments[:3], arguments[3][:3]), atol=1e-15)


NULL = 3
WEIGHT = jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)) / 3, jnp.float32)


def network(x, t, labels):
    return jnp.tanh(x @ WEIGHT + t[:, None]) * (1 + labels[:, None])


def sample(sampler, key, indices, labels, guidance_scale, times, trajectory=False):
    denoiser = predict(network, FLOW, velocity)
    guided = guide(denoiser, labels, NULL, guidance_scale)
    noise = FLOW.prior(sample_keys(key, indices), (6,))
    return sampler(guided, FLOW, noise, times, trajectory=trajectory)


def arguments(num_steps, batch=4, scale=2.0, shift=1.0):
    indices = jnp.arange(batch)
    return (
        jax.random.key(0),
        indices,
        indices % NULL,
        jnp.float32(scale),
        uniform_grid(FLOW, num_steps, shift),
    )


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_nothing_recompiles_when_values_change(sampler):
    traces = []

    @jax.jit
    def generate(*args):
        traces.append(args)
        return sample(sampler, *args)

    key, indices, labels, scale, times = arguments(5)
    first = generate(key, indices, labels, scale, times)
    others = [
        generate(key, indices, labels, jnp.float32(3.0), times),
        generate(key, indices, labels + 1, scale, times),
        generate(key, indices, labels, scale, uniform_grid(FLOW, 5, shift=3.0)),
        generate(jax.random.key(1), indices, labels, scale, times),
    ]
    assert len(traces) == 1
    assert all(np.abs(first - other).max() > 1e-3 for other in others)  # every argument has an effect


def tanh_denoiser(x_t, t):
    return Prediction(jnp.tanh(x_t), x_t)


@pytest.mark.parametrize("num_steps", [1, 4, 50])
@pytest.mark.parametrize("sampler", [euler, ddim])
def test_the_compiled_program_holds_the_network_once(sampler, num_steps):
    generate = jax.jit(lambda x, times: sampler(tanh_denoiser, FLOW, x, times))
    program = generate.lower(jnp.zeros((8, 6)), uniform_grid(FLOW, num_steps)).compile()
    assert program.as_text().count(" tanh(") == 1


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_states_are_stored_only_for_a_trajectory(sampler):
    def largest_array(trajectory):
        sample = lambda x, times: sampler(tanh_denoiser, FLOW, x, times, trajectory=trajectory)
        program = jax.make_jaxpr(sample)(noise, uniform_grid(FLOW, 50))
        return max(output.aval.size for equation in program.eqns for output in equation.outvars)

    noise = jnp.zeros((64, 6))
    assert largest_array(trajectory=False) == noise.size
    assert largest_array(trajectory=True) == 51 * noise.size


def test_samples_do_not_depend_on_their_batch():
    key, indices, labels, scale, times = arguments(10, batch=8)
    generate = jax.jit(functools.partial(sample, euler))
    together = generate(key, indices, labels, scale, times)
    chosen = jnp.array([6, 1])
    apart = generate(key, indices[chosen], labels[chosen], scale, times)
    # Matrix products of another size round differently, 1e-7, at each of the ten steps.
    np.testing.assert_allclose(apart, together[chosen], rtol=1e-5, atol=1e-5)
    assert np.abs(together[6] - together[1]).max() > 0.1


def test_sample_keys_are_folded_by_index():
    key = jax.random.key(3)
    keys = sample_keys(key, jnp.array([5, 0]))
    expected = [jax.random.key_data(jax.random.fold_in(key, i)) for i in (5, 0)]
    np.testing.assert_array_equal(jax.random.key_data(keys), expected)
