"""Likelihoods of a pixel's levels against the equations of PixelCNN++, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from genjax.autoregression import categorical, mixture_of_logistics
from genjax.diffusion.likelihood import bits_per_dimension

COMPONENTS = 10


def outputs_of(channels, count=4, scale=1.0):
    shape = mixture_of_logistics(256, COMPONENTS).outputs(channels)
    drawn = np.random.default_rng(0).normal(size=(count, *shape))
    return jnp.asarray(scale * drawn, jnp.float32)


def pixel_mass(outputs, x, levels=256):
    """Return the probability of one pixel's levels by equations 2 and 3, in float64."""
    weights, rest = softmax(outputs[:COMPONENTS].astype(float)), outputs[COMPONENTS:].astype(float)
    rest, x = rest.reshape(len(x), -1, COMPONENTS), 2 * np.asarray(x) / (levels - 1) - 1
    mean, scale = rest[:, 0].copy(), np.exp(np.maximum(rest[:, 1], -7))
    if len(x) == 3:
        alpha, beta, gamma = np.tanh(rest[:, 2])
        mean[1] += alpha * x[0]
        mean[2] += beta * x[0] + gamma * x[1]
    half = 1 / (levels - 1)
    upper = np.where(x > 1 - half, np.inf, x + half)[:, None]
    lower = np.where(x < half - 1, -np.inf, x - half)[:, None]
    mass = expit((upper - mean) / scale) - expit((lower - mean) / scale)
    return (weights * mass.prod(0)).sum()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixture_is_that_of_the_equations(channels):
    likelihood, outputs = mixture_of_logistics(), outputs_of(channels)
    x = np.array([[0, 255, 128], [7, 0, 255], [100, 130, 120], [255, 3, 0]], np.int32)[:, :channels]
    found = jax.jit(likelihood.log_probability)(outputs, jnp.asarray(x)).sum(-1)
    expected = [np.log(pixel_mass(*each)) for each in zip(np.asarray(outputs), x, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_channels_law_over_256_levels_sums_to_one_and_is_that_of_the_likelihood(channels):
    """Means up to ±3, far outside the levels, and scales down to the least, too."""
    likelihood, outputs = mixture_of_logistics(), outputs_of(channels, scale=3.0)
    x = np.random.default_rng(1).integers(0, 256, (4, channels)).astype(np.int32)
    log_probabilities = jax.jit(jax.vmap(likelihood.log_probability, (None, 0)))
    logits_of = jax.jit(likelihood.logits)
    for channel in range(channels):
        # the likelihood of every level of this channel, by changing x
        each = np.repeat(x[None], 256, axis=0)
        each[..., channel] = np.arange(256)[:, None]
        every = np.asarray(log_probabilities(outputs, jnp.asarray(each)))[..., channel]
        np.testing.assert_allclose(np.exp(np.float64(every)).sum(0), 1, rtol=1e-4)  # float32
        later = x.copy()
        later[:, channel:] = 0  # logits read earlier channels only
        logits = logits_of(outputs, jnp.asarray(later), jnp.int32(channel))
        # float32: sums of logarithms
        np.testing.assert_allclose(logits, every.T, rtol=1e-3, atol=1e-3)


def test_the_joint_law_of_three_channels_sums_to_one():
    likelihood = mixture_of_logistics(levels=4, components=COMPONENTS)
    x = jnp.array(list(itertools.product(range(4), repeat=3)))
    outputs = jnp.repeat(outputs_of(3, 1), len(x), axis=0)
    log_probability = jax.jit(likelihood.log_probability)(outputs, x)
    total = np.exp(np.float64(log_probability).sum(-1))
    assert total.sum() == pytest.approx(1, rel=1e-5)


def test_its_gradient_is_finite_where_a_mass_is_tiny():
    """A narrow component far from the level: the authors need an approximation there.

    Its scale is at least e^−7, as in the authors' nn.py.
    """
    outputs = np.zeros((1, 3 * COMPONENTS), np.float32)
    outputs[:, COMPONENTS : 2 * COMPONENTS], outputs[:, 2 * COMPONENTS :] = 1.0, -9.0
    likelihood, x = mixture_of_logistics(), jnp.full((1, 1), 64)
    log_probability = lambda outputs: likelihood.log_probability(outputs, x).sum()
    value, gradient = jax.jit(jax.value_and_grad(log_probability))(jnp.asarray(outputs))
    # log σ is −(distance of the mean less half a level)/scale, to a relative e^−1000
    distance = 1 - (2 * 64 / 255 - 1) - 1 / 255
    assert value == pytest.approx(-distance * np.exp(7), rel=1e-3)
    assert np.isfinite(gradient).all() and np.abs(gradient).sum() > 0


def test_its_gradient_is_finite_where_a_scale_is_huge():
    """A flat law gives each level the mass half/2/scale, with half = 1/255."""
    loss = lambda outputs: mixture_of_logistics(256, 1).log_probability(outputs, jnp.array([64]))[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.array([0.0, 0.5, 95.0]))
    assert value == pytest.approx(np.log(1 / 255 / 2) - 95, rel=1e-6)
    np.testing.assert_allclose(gradient, [0, 0, -1], atol=1e-30)


def test_a_mixture_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="1 or 3 channels; got 4"):
        mixture_of_logistics().outputs(4)


def test_equal_logits_are_8_bits_per_dimension():
    likelihood = categorical(256)
    assert likelihood.outputs(3) == (3, 256)
    nats = likelihood.log_probability(jnp.zeros((2, 3, 256)), jnp.zeros((2, 3), jnp.int32)).sum(-1)
    np.testing.assert_allclose(bits_per_dimension(nats, 3), 8.0, rtol=1e-6)


def test_log_probabilities_of_bfloat16_outputs_are_float32():
    outputs, x = outputs_of(1).astype(jnp.bfloat16), jnp.full((4, 1), 100)
    log_probability = mixture_of_logistics().log_probability
    nats = [log_probability(a, x) for a in (outputs, outputs.astype(jnp.float32))]
    np.testing.assert_array_equal(*nats)
    found = categorical(2).log_probability(jnp.array([[7.0, 0.0]], jnp.bfloat16), jnp.zeros(1, int))
    np.testing.assert_allclose(found, -np.log1p(np.exp(-7.0)), rtol=1e-3)


def test_levels_are_integers(unchecked_annotations):
    """Images in [−1, 1] would be taken for levels near 0."""
    with pytest.raises(ValueError, match="levels are integers from 0 to 255; got float32"):
        mixture_of_logistics().log_probability(jnp.zeros((2, 30)), jnp.zeros((2, 1)))
