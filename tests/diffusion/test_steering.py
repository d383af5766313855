"""Particles against laws in closed form: a Gaussian given one coordinate, and a tilted mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from mixtures import DEVIATIONS, MEANS, WEIGHTS, mixture_denoiser, quick_jit
from scipy.special import softmax

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    inpaint,
    optimal,
    sample_keys,
    steer,
    steer_inpainting,
    uniform_grid,
)
from genjax.diffusion.samplers import ddpm
from genjax.diffusion.steering import _resample

FLOW = RectifiedFlow()
CORRELATION, KNOWN, MASK = 0.8, 1.5, jnp.array([True, False])
COUNT = 1000


def keys_of(count):
    return sample_keys(jax.random.key(0), jnp.arange(count))


def gaussian_denoiser():
    covariance = jnp.array([[[1.0, CORRELATION], [CORRELATION, 1.0]]])
    return optimal.gaussian_mixture(
        FLOW, jnp.ones(1), jnp.zeros((1, 2)), optimal.principal_axes(covariance)
    )


def filled_in(num_particles, num_steps):
    images, keys = jnp.full((COUNT, 2), KNOWN), keys_of(COUNT)
    noise = FLOW.prior(keys, (num_particles, 2))
    fill = lambda noise, times: steer_inpainting(
        gaussian_denoiser(), FLOW, noise, times, keys, MASK, images
    )
    return np.asarray(jax.jit(fill)(noise, uniform_grid(FLOW, num_steps)), np.float64)


def test_inpainting_has_the_conditional_law():
    samples = filled_in(num_particles=64, num_steps=100)
    np.testing.assert_array_equal(samples[:, 0], np.float32(KNOWN))
    mean, deviation = CORRELATION * KNOWN, np.sqrt(1 - CORRELATION**2)
    # 1,000 samples would reveal a distribution function that is wrong by 0.0513 at any point.
    law = scipy.stats.norm(mean, deviation)
    assert scipy.stats.kstest(samples[:, 1], law.cdf).pvalue > 0.01
    assert abs(samples[:, 1].mean() - mean) < 4 * deviation / np.sqrt(COUNT)
    assert abs(samples[:, 1].var() - deviation**2) < 4 * deviation**2 * np.sqrt(2 / COUNT)


def test_inpainting_with_one_particle_is_replacement():
    samples, keys = filled_in(num_particles=1, num_steps=20)[:8], keys_of(8)
    denoiser = inpaint(gaussian_denoiser(), FLOW, MASK, jnp.full((8, 2), KNOWN))
    noise = FLOW.prior(keys, (1, 2))[:, 0]
    table = ddpm.table(FLOW, uniform_grid(FLOW, 20))

    # `ddpm` folds other numbers for its noise, so the steps are made here.
    @jax.jit
    def step(x, row, number):
        prediction = denoiser(x, jnp.full(8, row.times))
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), (1, 2))[0]
        moved = row.clean[0] * prediction.clean + row.noise[0] * prediction.noise
        return moved + row.fresh * jax.vmap(draw)(keys)

    x, table = noise, table._replace(step=None)
    for i in range(20):
        x = step(x, jax.tree.map(lambda column, i=i: column[i], table), 2 * i)
    np.testing.assert_allclose(samples, x, rtol=1e-4, atol=1e-5)


def test_each_image_has_its_own_known_part():
    images, noise = jnp.arange(8.0).reshape(4, 2), FLOW.prior(keys_of(4), (4, 2))
    known = jnp.array([[True, False], [False, True]] * 2)
    times = uniform_grid(FLOW, 4)

    @jax.jit
    def fill(noise, keys, known, images):
        fill = lambda *batch: steer_inpainting(
            gaussian_denoiser(), FLOW, batch[0], times, *batch[1:]
        )
        alone = fill(noise[1:2], keys[1:2], known[1], images[1:2])
        return fill(noise, keys, known, images), alone

    filled, alone = fill(noise, keys_of(4), known, images)
    np.testing.assert_array_equal(filled[known], images[known])
    np.testing.assert_allclose(filled[1:2], alone, rtol=1e-5, atol=1e-6)


def test_all_particles_see_one_noised_path_of_the_known_part():
    """From a time with data in it. The denoiser answers the known number for the unknown one."""
    keys, images, t, s = keys_of(4), jnp.full((4, 2), KNOWN), 0.75, 0.5
    noise = FLOW.prior(keys, (3, 2), jnp.asarray(t))
    swap = lambda x_t, t: Prediction(x_t[:, ::-1], 0 * x_t)
    fill = lambda *inputs: steer_inpainting(swap, FLOW, *inputs, keys, MASK, images)
    filled = quick_jit(fill)(noise, jnp.array([t, s, 0.0]))
    drawn = (1 - ((1 - t) / (1 - s)) ** 2 * s**2 / t**2) * s**2  # variance of q(x_s | x_t, x)
    fresh = [jax.random.normal(jax.random.fold_in(key, 0), (3, 2))[0, 0] for key in keys]
    path = (1 - s) * KNOWN + np.sqrt(s**2 - drawn) / t * noise[:, 0, 0]
    np.testing.assert_allclose(filled[:, 1], path + np.sqrt(drawn) * np.array(fresh), rtol=1e-5)


def test_resampling_is_systematic():
    """N particles of weight w become N·w, rounded up or down. Equal weights keep all."""
    log_weights = jax.random.normal(jax.random.key(1), (8, 5))
    resample = quick_jit(lambda log_weights: _resample(keys_of(8), 0, log_weights))
    chosen = np.asarray(resample(log_weights))
    copies = np.sum(chosen[:, None] == np.arange(5)[:, None], axis=2)
    assert np.all(np.abs(copies - 5 * softmax(log_weights, axis=1)) < 1)
    np.testing.assert_array_equal(resample(0 * log_weights), [np.arange(5)] * 8)


def dtypes_of(denoiser, noise, times):
    """Return the types of both functions' samples, without computing them."""

    def samples(noise, times):
        inputs = denoiser, FLOW, noise, times, keys_of(2)
        filled = steer_inpainting(*inputs, MASK, jnp.ones((2, 2), jnp.float32))
        return filled, steer(*inputs, lambda x, t: x[:, 0])

    return [samples.dtype for samples in jax.eval_shape(samples, noise, times)]


def test_particles_of_bfloat16_see_times_of_float32():
    seen = []

    def denoiser(x_t, t):
        seen.append(t.dtype)
        return Prediction(0 * x_t, x_t)

    noise, times = FLOW.prior(keys_of(2), (4, 2)).astype(jnp.bfloat16), uniform_grid(FLOW, 3)
    filled, steered = dtypes_of(denoiser, noise, times)
    assert set(seen) == {jnp.dtype(jnp.float32)}
    assert filled == steered == jnp.bfloat16


def test_rewards_tilt_the_law():
    """p(x)·exp(a·x) of a mixture has components N(m + a·s², s²).

    Their weights are w·exp(a·m + a²s²/2).
    """
    slope, keys = -1.5, keys_of(COUNT)
    noise = FLOW.prior(keys, (64,))
    sample = jax.jit(
        lambda noise, times: steer(
            mixture_denoiser(FLOW), FLOW, noise, times, keys, lambda x, t: slope * x
        )
    )
    samples = np.asarray(sample(noise, uniform_grid(FLOW, 100)), np.float64)
    weights = softmax(np.log(WEIGHTS) + slope * MEANS + (slope * DEVIATIONS) ** 2 / 2)
    means = MEANS + slope * DEVIATIONS**2
    tilted = lambda x: scipy.stats.norm.cdf(x[:, None], means, DEVIATIONS) @ weights
    assert scipy.stats.kstest(samples, tilted).pvalue > 0.01


@pytest.mark.parametrize("guess", [0, -jnp.inf])
def test_a_reward_of_minus_infinity_excludes(guess):
    """N(0, 1) above 1 is a truncated normal, if all rewards before the clean end are finite.

    16 % of N(0, 1) is above 1, so 64 particles have one there. With guesses of −∞ the early x̂ are
    all excluded, which must not be a difference of infinities.
    """
    denoiser = optimal.gaussian_mixture(FLOW, jnp.ones(1), jnp.zeros((1, 1)), jnp.ones(1))
    reward = lambda x, t: jnp.where(x[:, 0] > 1, 0, jnp.where(t > 0, guess, -jnp.inf))
    keys = keys_of(COUNT)
    sample = jax.jit(lambda noise, times: steer(denoiser, FLOW, noise, times, keys, reward))
    samples = sample(FLOW.prior(keys, (64, 1)), uniform_grid(FLOW, 100))
    samples = np.asarray(samples, np.float64)[:, 0]
    assert samples.min() > 1
    if guess == 0:
        assert scipy.stats.kstest(samples, scipy.stats.truncnorm(1, np.inf).cdf).pvalue > 0.01


def test_without_a_reward_the_law_is_that_of_the_data():
    keys = keys_of(COUNT)
    sample = jax.jit(
        lambda noise, times: steer(
            mixture_denoiser(FLOW), FLOW, noise, times, keys, lambda x, t: 0 * x
        )
    )
    samples = np.asarray(sample(FLOW.prior(keys, (2,)), uniform_grid(FLOW, 100)), np.float64)
    law = lambda x: scipy.stats.norm.cdf(x[:, None], MEANS, DEVIATIONS) @ WEIGHTS
    assert scipy.stats.kstest(samples, law).pvalue > 0.01


def test_no_number_is_folded_into_a_key_twice(monkeypatch):
    """Two draws with one key would depend on each other."""
    keys, folded, fold_in = keys_of(2), [], jax.random.fold_in
    spy = lambda key, number: folded.append(int(number)) or fold_in(key, number)
    monkeypatch.setattr(jax.random, "fold_in", spy)
    noise, times, images = FLOW.prior(keys, (3, 2)), uniform_grid(FLOW, 2), jnp.ones((2, 2))
    inputs = lambda x_t, t: Prediction(0 * x_t, x_t), FLOW, noise, times, keys
    with jax.disable_jit():
        steer(*inputs, lambda x, t: x[:, 0])
        assert len(folded) == len(set(folded)) == 2 * 2 + 1  # of each step, and of the choice
        folded.clear()
        steer_inpainting(*inputs, MASK, images)
        assert len(folded) == len(set(folded)) == 2 * 2 + 1


def test_the_network_is_held_once_and_a_sample_does_not_depend_on_its_batch():
    @jax.jit
    def fill(noise, images, keys, times, slope):
        def denoiser(x_t, t):
            x_hat = jnp.tanh(x_t)
            return Prediction(x_hat, (x_t - (1 - t)[:, None] * x_hat) / t[:, None])

        reward = lambda x, t: slope * jnp.sum(x, 1)
        filled = steer_inpainting(denoiser, FLOW, noise, times, keys, MASK, images)
        return filled, steer(denoiser, FLOW, noise, times, keys, reward)

    keys, images = keys_of(4), jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
    noise = FLOW.prior(keys, (8, 2))
    both = fill(noise, images, keys, uniform_grid(FLOW, 8), 2.0)
    fill(noise, images, keys, uniform_grid(FLOW, 8, shift=2.0), 3.0)
    assert fill._cache_size() == 1
    text = fill.lower(noise, images, keys, uniform_grid(FLOW, 8), 2.0).compile().as_text()
    assert text.count(" tanh(") == 2  # once in each of the two samplers
    alone = fill(noise[2:3], images[2:3], keys[2:3], uniform_grid(FLOW, 8), 2.0)
    for together, single in zip(both, alone, strict=True):
        np.testing.assert_allclose(together[2:3], single, rtol=1e-5, atol=1e-6)


def test_float32_stays_float32_while_float64_is_enabled():
    with jax.enable_x64(True):
        noise, times = jnp.ones((2, 4, 2), jnp.float32), uniform_grid(FLOW, 3)
        filled, steered = dtypes_of(lambda x_t, t: Prediction(0 * x_t, x_t), noise, times)
        assert times.dtype == jnp.float64 and filled == steered == jnp.float32


def test_rewards_may_be_of_a_wider_type_than_the_data():
    """Data are bfloat16 and rewards float32. A reward of 50 for one sign leaves only that sign.

    The reward is known at the clean end alone, so the choice of the last particle decides.
    """
    keys, times = keys_of(4), uniform_grid(FLOW, 3)
    noise = FLOW.prior(keys, (16, 2)).astype(jnp.bfloat16)
    denoiser = lambda x_t, t: Prediction(jnp.sign(x_t), 0 * x_t)
    reward = lambda x, t: jnp.where(t > 0, 0, 50 * x[:, 0].astype(jnp.float32))
    steered = jax.jit(lambda noise: steer(denoiser, FLOW, noise, times, keys, reward))(noise)
    assert steered.dtype == jnp.bfloat16
    np.testing.assert_array_equal(steered[:, 0], jnp.ones(4))
