import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genjax.diffusion import (
    RectifiedFlow,
    VarianceExploding,
    logit_normal,
    shift_time,
    shifted,
    to_domain,
    uniform,
    uniform_grid,
)

DRAWS = 400_000


def draw(distribution):
    return np.asarray(distribution(jax.random.key(0), (DRAWS,)), np.float64)


def test_uniform():
    assert scipy.stats.kstest(draw(uniform), "uniform").pvalue > 0.01


def test_logit_normal_moments():
    t = draw(logit_normal)
    # Four standard errors: √(Var/n) = 3.3e-4, √(Var(t²)/n) < 1e-4 and √(p(1 − p)/n) = 7.7e-4.
    np.testing.assert_allclose(t.mean(), 0.5, atol=4 * 3.3e-4)
    np.testing.assert_allclose(t.var(), 0.0433790, atol=4e-4)
    np.testing.assert_allclose(np.mean((0.3 < t) & (t < 0.7)), 0.603171, atol=4 * 7.7e-4)
    t = draw(functools.partial(logit_normal, mean=-0.4))
    np.testing.assert_allclose(t.mean(), 0.418012, atol=4 * 3.3e-4)


def test_logit_normal_is_normal_in_its_logit():
    t = draw(functools.partial(logit_normal, mean=0.3, deviation=0.5))
    normal = scipy.stats.norm(0.3, 0.5)
    assert scipy.stats.kstest(np.log(t / (1 - t)), normal.cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("distribution", [uniform, logit_normal, shifted(uniform, 3.0)])
def test_shapes(distribution, shape):
    assert distribution(jax.random.key(0), shape).shape == shape


def test_flux_shifts_four_steps_at_4096_tokens():
    grid = uniform_grid(RectifiedFlow(), 4, shift=float(np.exp(1.15)))
    np.testing.assert_allclose(grid, [1, 0.9045, 0.7595, 0.5128, 0], atol=5e-5)  # as printed
    np.testing.assert_array_equal(uniform_grid(RectifiedFlow(), 4), [1, 0.75, 0.5, 0.25, 0])


def test_shift_three_of_28_steps():
    grid = uniform_grid(RectifiedFlow(), 28, shift=3.0)
    np.testing.assert_allclose(grid[:-1], shift_time(jnp.linspace(1, 1 / 28, 28), 3.0), rtol=1e-5)
    np.testing.assert_allclose(grid[-3:], [0.1875, 0.1, 0], atol=5e-5)
    ends = shift_time(jnp.linspace(1, 1 / 1000, 28), 3.0)[-3:]
    np.testing.assert_allclose(ends, [0.1957, 0.1059, 0.0030], atol=5e-5)


@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shift_lowers_the_log_snr_of_rectified_flow(shift, float64):
    t = jnp.linspace(0.01, 0.99, 9)
    log_snr = RectifiedFlow().log_snr
    np.testing.assert_allclose(log_snr(shift_time(t, shift)), log_snr(t) - 2 * np.log(shift), atol=1e-12)
    np.testing.assert_allclose(shift_time(shift_time(t, shift), 1 / shift), t, rtol=1e-12)


def test_shift_keeps_both_ends_exactly_and_stays_between_them():
    shifts = jnp.asarray(np.random.default_rng(0).uniform(0.05, 20, 1000), jnp.float32)
    ends = jax.vmap(lambda shift: shift_time(jnp.array([0.0, 1.0]), shift))(shifts)
    np.testing.assert_array_equal(ends, np.broadcast_to([0.0, 1.0], (1000, 2)))
    np.testing.assert_array_equal(shift_time(jnp.linspace(0, 1, 11), 1.0), jnp.linspace(0, 1, 11))


def test_shifted_distribution_shifts_the_draws_of_the_other():
    key = jax.random.key(0)
    t, result = uniform(key, (5,)), shifted(uniform, 3.0)(key, (5,))
    np.testing.assert_allclose(result, 3 * t / (1 + 2 * t), rtol=1e-6)
    assert np.all(result > t)  # towards noise


def test_grids_fill_the_domain_from_the_noise_end():
    process = VarianceExploding(domain=(0.2, 0.7))
    np.testing.assert_allclose(to_domain(process, jnp.array([0.0, 0.5, 1.0])), [0.2, 0.45, 0.7], rtol=1e-6)
    grid = uniform_grid(process, 5)
    np.testing.assert_allclose(grid, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2], rtol=1e-6)
    grid = uniform_grid(process, 5, shift=2.0)
    np.testing.assert_allclose(grid, 0.2 + 0.5 * shift_time(jnp.linspace(1, 0, 6), 2.0), rtol=1e-6)
    np.testing.assert_array_equal(uniform_grid(RectifiedFlow(), 1), [1, 0])


@pytest.mark.parametrize("num_steps", [0, -3])
def test_grids_refuse_no_steps(num_steps):
    with pytest.raises(ValueError, match=f"at least one step; got num_steps={num_steps}"):
        uniform_grid(RectifiedFlow(), num_steps)
