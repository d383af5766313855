import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import RectifiedFlow, VarianceExploding, VariancePreservingCosine, sample_keys

TIMES = np.linspace(0.02, 0.98, 13)
EXPECTED = {
    RectifiedFlow: (1 - TIMES, TIMES),
    VariancePreservingCosine: (np.cos(np.pi / 2 * TIMES), np.sin(np.pi / 2 * TIMES)),
    VarianceExploding: (np.ones(13), np.exp(np.log(0.01) + TIMES * np.log(5000))),
}


def test_alpha_sigma_and_log_snr(process, float64):
    alpha, sigma = EXPECTED[type(process)]
    t = jnp.asarray(TIMES)
    np.testing.assert_allclose(process.alpha(t), alpha, rtol=1e-13)
    np.testing.assert_allclose(process.sigma(t), sigma, rtol=1e-13)
    np.testing.assert_allclose(process.log_snr(t), np.log(alpha**2 / sigma**2), rtol=1e-12, atol=1e-12)


def test_derivatives_against_differences(process, float64):
    t, step = jnp.asarray(TIMES), 1e-5
    for function, derivative in (
        (process.alpha, process.alpha_prime),
        (process.sigma, process.sigma_prime),
    ):
        difference = (function(t + step) - function(t - step)) / (2 * step)
        # The difference misses by step²·f'''/6, at most 5e-9 of sigma = 50, and by rounding, 1e-11.
        np.testing.assert_allclose(derivative(t), difference, rtol=1e-8, atol=1e-9)


def test_time_at_inverts_log_snr(process, float64):
    np.testing.assert_allclose(process.time_at(process.log_snr(jnp.asarray(TIMES))), TIMES, rtol=1e-12)


def test_ends_are_exact():
    ends = jnp.array([0.0, 1.0])
    for process in (RectifiedFlow(), VariancePreservingCosine()):
        np.testing.assert_array_equal(process.alpha(ends), [1, 0])
        np.testing.assert_array_equal(process.sigma(ends), [0, 1])
        np.testing.assert_array_equal(process.log_snr(ends), [np.inf, -np.inf])
        np.testing.assert_array_equal(process.time_at(process.log_snr(ends)), ends)
    process = VarianceExploding(sigma_min=0.02, sigma_max=80.0)
    np.testing.assert_allclose(process.sigma(ends), [0.02, 80], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_times_may_have_any_shape(process, shape):
    t = jnp.full(shape, 0.25)
    for name in (
        "alpha",
        "sigma",
        "alpha_prime",
        "sigma_prime",
        "log_snr",
        "time_at",
        "input_scale",
        "network_time",
    ):
        result = getattr(process, name)(t)
        assert result.shape == shape and result.dtype == jnp.float32, name
        np.testing.assert_allclose(result, getattr(process, name)(t.reshape(-1)[0]), rtol=1e-6)


def test_the_network_sees_unit_variance_and_times_in_the_unit_interval(process):
    """For data of unit variance; a straight path between data and noise is left as it is."""
    t = jnp.linspace(0.0, 1.0, 7)
    variance = process.alpha(t) ** 2 + process.sigma(t) ** 2
    if isinstance(process, RectifiedFlow):
        np.testing.assert_array_equal(process.input_scale(t), 1)
    else:
        np.testing.assert_allclose(process.input_scale(t) ** 2 * variance, 1, rtol=1e-6)
    network_time = process.network_time(t)
    assert network_time.min() >= 0 and network_time.max() <= 1 and np.all(np.diff(network_time) > 0)


def test_corrupt_uses_each_examples_own_time(process):
    x, z = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2), np.float32)
    t = jnp.array([0.1, 0.5, 0.9])
    x_t, alpha, sigma = process.corrupt(jnp.asarray(x), jnp.asarray(z), t), process.alpha(t), process.sigma(t)
    for i in range(3):
        np.testing.assert_allclose(
            x_t[i], float(alpha[i]) * x[i] + float(sigma[i]) * z[i], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_prior_has_the_deviation_of_the_noise_end(process, end):
    process = type(process)(domain=(0.0, end))
    noise = process.prior(jax.random.split(jax.random.key(0), 100), (8, 8, 4))
    assert noise.shape == (100, 8, 8, 4)
    deviation = float(process.sigma(jnp.asarray(end)))
    # Of n = 25,600 values the mean deviates by sigma/√n = .00625 and the deviation by sigma/√2n = .0044.
    assert abs(noise.mean()) < 4 * 0.00625 * deviation
    np.testing.assert_allclose(noise.std(), deviation, rtol=4 * 0.0044)


def test_prior_of_a_sample_depends_on_its_index_alone(process):
    key = jax.random.key(0)
    together = process.prior(sample_keys(key, jnp.arange(6)), (4, 3))
    alone = process.prior(sample_keys(key, jnp.array([4, 1])), (4, 3))
    np.testing.assert_array_equal(alone, together[jnp.array([4, 1])])
    correlation = np.corrcoef(np.asarray(together).reshape(6, -1))
    assert np.all(np.abs(correlation[~np.eye(6, dtype=bool)]) < 0.999)  # all different
