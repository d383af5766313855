"""Guidance and temperature of token denoisers against laws that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import LAW, LENGTH, OUTCOMES, VOCABULARY, exact

from genjax import diffusion
from genjax.diffusion import discrete

PROCESS = discrete.Masked(vocabulary_size=VOCABULARY)
LOGITS = jax.random.normal(jax.random.key(0), (3, LENGTH, VOCABULARY))  # of class 0, 1 and null
STATES = jnp.asarray([[5, 5, 5], [5, 2, 5], [0, 5, 5], [5, 5, 1]])
TIMES = jnp.asarray([1.0, 0.7, 0.5, 0.2])


def conditional(x_t, t, labels):
    return discrete.predict(lambda x_t, t, labels: LOGITS[labels], PROCESS, discrete.clean)(
        x_t, t, labels
    )


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


def test_guidance_is_a_normalized_product_of_powers():
    labels, calls = jnp.asarray([0, 1, 0, 1]), []

    def counted(x_t, t, labels):
        calls.append(x_t.shape)
        return conditional(x_t, t, labels)

    guided = discrete.guide(counted, labels, jnp.asarray(2), 2.5)(STATES, TIMES)
    assert calls == [(8, 3)]  # one call for both answers
    c, u = softmax(LOGITS[labels]), softmax(LOGITS[2])
    product = c**2.5 * u**-1.5
    expected = product / product.sum(-1, keepdims=True)
    masked = np.asarray(STATES == PROCESS.mask)
    np.testing.assert_allclose(jnp.exp(guided)[masked], expected[masked], rtol=1e-4)
    # What is not masked stays certain, whatever the scale.
    own = np.eye(VOCABULARY)[np.asarray(STATES)[~masked]]
    np.testing.assert_array_equal(jnp.exp(guided)[~masked], own)


def test_scale_of_1_is_conditional_and_an_interval_limits_guidance():
    labels = jnp.asarray([0, 1, 0, 1])
    run = lambda scale: discrete.guide(conditional, labels, jnp.asarray(2), scale)(STATES, TIMES)
    plain = conditional(STATES, TIMES, labels)
    np.testing.assert_allclose(run(1.0), plain, rtol=1e-5, atol=1e-5)
    inside = run(diffusion.interval(3.0, 0.3, 0.8))
    np.testing.assert_allclose(inside[:1], plain[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inside[1:3], run(3.0)[1:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_what_one_answer_excludes_is_impossible(scale):
    """As of scores, whose answers exclude different tokens; 1 and 0 take one answer alone."""
    c, u = laws = np.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.0, 0.25, 0.25]], np.float32)
    table = jnp.where(laws > 0, jnp.log(laws), -1e9)
    denoiser = lambda x_t, t, labels: jnp.broadcast_to(table[labels, None], (*x_t.shape, 4))
    guided = discrete.guide(denoiser, jnp.zeros(1, int), jnp.asarray(1), scale)
    product = np.where(c * u > 0, c**scale * np.where(u > 0, u, 1) ** (1 - scale), 0)
    expected = {0.0: u, 1.0: c}.get(scale, product / product.sum())
    found = jnp.exp(guided(jnp.zeros((1, 2), int), jnp.ones(1)))
    np.testing.assert_allclose(found, np.tile(expected, (1, 2, 1)), rtol=1e-6)


def test_guided_samples_follow_the_guided_law():
    """Exact denoisers of two laws, one token: samples have the law c²/u, normalized."""
    rng = np.random.default_rng(1)
    laws = np.stack([LAW, 0.3 * LAW + 0.7 * rng.dirichlet(np.ones(len(LAW)))])
    keys = diffusion.sample_keys(jax.random.key(2), jnp.arange(8000))
    denoiser = exact(PROCESS)

    @jax.jit
    def run():
        given = PROCESS.prior(keys, (LENGTH,)).at[:, :2].set(jnp.asarray([1, 3]))
        log_laws = jnp.log(jnp.asarray(laws, jnp.float32))
        condition = jnp.broadcast_to(log_laws[0], (len(keys), len(LAW)))
        guided = discrete.guide(denoiser, condition, log_laws[1], 2.0)
        return discrete.ancestral(guided, PROCESS, given, jnp.asarray([1.0, 0.5, 0.0]), keys=keys)

    known = np.all(np.asarray(OUTCOMES)[:, :2] == [1, 3], 1)
    c, u = (law[known] / law[known].sum() for law in laws)
    expected = c**2 / u / np.sum(c**2 / u)
    found = np.bincount(run()[:, 2], minlength=VOCABULARY) / len(keys)
    # Four standard errors of a frequency of 8,000 are at most 0.0224.
    np.testing.assert_allclose(found, expected, atol=0.0224)
    assert np.abs(expected - c).max() > 0.05


def test_temperature_sharpens_and_0_is_greedy():
    labels = jnp.asarray([0, 1, 0, 1])
    run = lambda temperature: np.asarray(
        jnp.exp(discrete.temper(conditional, temperature)(STATES, TIMES, labels))
    )
    power = softmax(LOGITS[labels]) ** 2
    masked = np.asarray(STATES == PROCESS.mask)
    expected = (power / power.sum(-1, keepdims=True))[masked]
    np.testing.assert_allclose(run(0.5)[masked], expected, rtol=1e-5)
    greedy = np.eye(VOCABULARY)[np.argmax(run(1.0), -1)]
    np.testing.assert_array_equal(run(0.0), greedy)
    np.testing.assert_array_equal(run(lambda t: jnp.where(t > 0.6, 0.0, 0.5))[:2], greedy[:2])
    with pytest.raises(ValueError, match="a temperature is at least 0"):
        discrete.temper(conditional, -0.1)


def test_null_must_fit_the_conditioning():
    with pytest.raises(ValueError, match="null"):
        discrete.guide(conditional, jnp.asarray([0, 1]), jnp.zeros((3, 2), int), 2.0)
