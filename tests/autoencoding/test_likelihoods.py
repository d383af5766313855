"""Likelihoods against SciPy's distributions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import autoencoding

SHAPE = (3, 4, 5, 2)


@pytest.fixture
def draws():
    generator = np.random.default_rng(0)
    return generator.normal(size=SHAPE), generator.normal(size=SHAPE)


def total(a):
    return a.reshape(len(a), -1).sum(1)


def test_bernoulli_is_that_of_black_and_white_pixels(draws):
    logits, x = draws[0], np.sign(draws[1])
    expected = total(stats.bernoulli.logpmf(x > 0, 1 / (1 + np.exp(-logits))))
    likelihood = autoencoding.bernoulli()
    found = likelihood.log_probability(jnp.asarray(logits), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32
    assert likelihood.parameters == 1


def test_bernoulli_of_gray_is_the_expectation_over_black_and_white(draws):
    logits, x = jnp.asarray(draws[0][:1, :1, :1]), jnp.array([[[[0.5, -0.2]]]])
    log_probability = autoencoding.bernoulli().log_probability
    expected = 0.0
    for a in (-1.0, 1.0):
        for b in (-1.0, 1.0):
            share = (1 + a * 0.5) / 2 * (1 - b * 0.2) / 2
            expected += share * log_probability(logits, jnp.array([[[[a, b]]]]))[0]
    np.testing.assert_allclose(log_probability(logits, x)[0], expected, rtol=1e-6)


def test_the_mean_of_a_bernoulli_is_that_of_its_draws():
    logits = jnp.array([[0.3, -2.0]])
    drawn = 2.0 * jax.random.bernoulli(jax.random.key(0), jax.nn.sigmoid(logits), (100_000, 2)) - 1
    # A mean of 100,000 values within ±1 errs by at most .0032. Four such errors are allowed.
    np.testing.assert_allclose(autoencoding.bernoulli().mean(logits)[0], drawn.mean(0), atol=0.013)


def test_gaussian(draws):
    mean, x = draws
    log_deviation = np.random.default_rng(1).normal(size=SHAPE)
    expected = total(stats.norm.logpdf(x, mean, np.exp(log_deviation)))
    likelihood = autoencoding.gaussian()
    outputs = jnp.concatenate([mean, log_deviation], axis=-1)
    assert outputs.shape[-1] == likelihood.parameters * SHAPE[-1]
    np.testing.assert_allclose(
        likelihood.log_probability(outputs, jnp.asarray(x)), expected, rtol=1e-5
    )
    np.testing.assert_allclose(likelihood.mean(outputs), mean, rtol=1e-6)
    fixed = autoencoding.gaussian(0.3)
    assert fixed.parameters == 1
    expected = total(stats.norm.logpdf(x, mean, 0.3))
    np.testing.assert_allclose(
        fixed.log_probability(jnp.asarray(mean), jnp.asarray(x)), expected, rtol=1e-5
    )


def logistic_outputs(mean, log_scale):
    return jnp.stack([jnp.asarray(mean, jnp.float32), jnp.asarray(log_scale, jnp.float32)], axis=-1)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean, log_scale", [(0.1, -3.0), (-1.2, -1.0), (0.9, 1.0), (0.0, -7.0)])
def test_the_masses_of_all_levels_sum_to_one(levels, mean, log_scale):
    x = jnp.linspace(-1, 1, levels)[:, None]
    outputs = jnp.broadcast_to(logistic_outputs(mean, log_scale), (levels, 2))
    likelihood = autoencoding.discretized_logistic(levels)
    assert np.abs(likelihood.mean(outputs)).max() <= 1  # an image, even where the mean is outside
    assert likelihood.levels == levels
    masses = jnp.exp(likelihood.log_probability(outputs, x))
    # 256 masses in float32, whose arguments of up to 1,000 are rounded by 1e-7: 1e-4 of a mass that
    # counts.
    np.testing.assert_allclose(masses.sum(), 1, rtol=1e-4)


def test_the_masses_of_levels_that_bytes_round_sum_to_one():
    """17 levels as bytes are 16 apart, but for 128 and 143, whose masses would overlap."""
    stored = np.round(np.arange(17) * 255 / 16)
    x = jnp.asarray(stored / 127.5 - 1, jnp.float32)[:, None]
    log_probability = autoencoding.discretized_logistic(17).log_probability
    for mean in np.linspace(-1, 1, 61):
        outputs = jnp.broadcast_to(logistic_outputs(mean, -4.6), (17, 2))
        masses = jnp.exp(log_probability(outputs, x))
        # float32 rounds x by 6e-8, which are 6e-6 scales of the law. Overlaps would add 0.18.
        np.testing.assert_allclose(masses.sum(), 1, rtol=1e-4)


def test_discretized_logistic_against_differences_of_its_distribution():
    """Near the mean the plain difference of cumulative probabilities is exact enough in float64."""
    levels, half = 256, 1 / 255
    x = np.linspace(-1, 1, levels)
    mean, log_scale = 0.2, -2.0
    upper = stats.logistic.cdf(x + half, mean, np.exp(log_scale))
    lower = stats.logistic.cdf(x - half, mean, np.exp(log_scale))
    upper[-1], lower[0] = 1, 0
    outputs = jnp.broadcast_to(logistic_outputs(mean, log_scale), (levels, 2))
    found = autoencoding.discretized_logistic(levels).log_probability(
        outputs, jnp.asarray(x)[:, None]
    )
    np.testing.assert_allclose(found, np.log(upper - lower), rtol=1e-5)  # float32


def test_discretized_logistic_keeps_its_digits_far_from_the_mean():
    """A narrow law has the mass e^-1500 at a distance of 1.5.

    Its logarithm is finite, with a gradient that pulls the mean nearer.
    """
    likelihood = autoencoding.discretized_logistic()  # of bytes
    x = 191 / 127.5 - 1  # a level
    loss = lambda mean: likelihood.log_probability(
        logistic_outputs([mean], [-6.9]), jnp.array([[x]])
    )[0]
    value, gradient = jax.value_and_grad(loss)(jnp.float32(x - 1.5))
    scale = np.exp(-6.9)
    half = 1 / 255
    # log σ(−b) − … → (mean − x + half)/scale + log(1 − exp(−2·half/scale)), up to e^-1500.
    expected = (-1.5 + half) / scale + np.log(-np.expm1(-2 * half / scale))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, 1 / scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "mean", "log_scale", "value", "gradient"),
    [
        # A wide law is flat, so a level inside has the mass half/2/scale, and the lowest one 1/2.
        (1 / 255, 0.5, 95.0, np.log(1 / 255 / 2) - 95, (0, -1)),
        (-1.0, 0.5, 95.0, np.log(1 / 2), (0, 0)),
        # A narrow law has all its mass in one level, and falls by 1/scale from that level's end.
        (1 / 255, 1 / 255, -100.0, 0, (0, 0)),
        (1 / 255, -0.5, -100.0, -0.5 * np.exp(80), (np.exp(80), 0)),
    ],
)
def test_discretized_logistic_is_finite_for_every_scale(x, mean, log_scale, value, gradient):
    """The limits of wide and narrow laws. Scales below e^-80 count as e^-80."""
    log_probability = autoencoding.discretized_logistic(256).log_probability
    loss = lambda outputs: log_probability(outputs[None], jnp.float32([[x]]))[0]
    found = jax.value_and_grad(loss)(jnp.float32([mean, log_scale]))
    np.testing.assert_allclose(found[0], value, rtol=1e-5)  # float32
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-30)


def test_bytes_and_outputs_of_other_images_are_refused(unchecked_annotations):
    x = jnp.zeros((2, 4, 3))
    for likelihood, factor in (
        (autoencoding.bernoulli(), 1),
        (autoencoding.gaussian(1.0), 1),
        (autoencoding.gaussian(), 2),
        (autoencoding.discretized_logistic(), 2),
    ):
        outputs = jnp.zeros((2, 4, 3 * factor))
        assert likelihood.log_probability(outputs, x).shape == (2,)
        with pytest.raises(ValueError, match="x is uint8 .*; expected floats in "):
            likelihood.log_probability(outputs, x.astype(jnp.uint8))
        with pytest.raises(ValueError, match=rf"outputs of shape \(2, 4, {3 * factor}\)"):
            likelihood.log_probability(outputs[..., :1], x)
