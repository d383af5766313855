"""Bounds on a known log p(x): x = W·z + m + s·ε, whose marginal and posterior are Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from genjax import autoencoding

FEATURES, LATENTS, BATCH, DEVIATION = 5, 2, 6, 0.4


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model():
    """Return W with orthogonal columns, m, x and log p(x).

    The columns make the posterior's covariance diagonal.
    """
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(FEATURES, LATENTS)))[0]
    w, m = directions * [1.5, 0.7], generator.normal(size=FEATURES)
    covariance = w @ w.T + DEVIATION**2 * np.eye(FEATURES)
    law = stats.multivariate_normal(m, covariance)
    x = law.rvs(BATCH, random_state=1)
    return w, m, x, law.logpdf(x)


def posterior(w, m, x):
    """Return the posterior with M = WᵀW + s²I, diagonal here (Bishop 2006, equation 12.42)."""
    precision = np.diag(w.T @ w + DEVIATION**2 * np.eye(LATENTS)) / DEVIATION**2
    mean = (x - m) @ w / DEVIATION**2 / precision
    return jnp.asarray(mean), jnp.broadcast_to(-jnp.log(precision), mean.shape)


def log_likelihood(w, m, x):
    return lambda z: autoencoding.gaussian(DEVIATION).log_probability(z @ w.T + m, jnp.asarray(x))


def test_with_the_exact_posterior_the_elbo_is_log_p_in_expectation(model):
    w, m, x, log_p = model
    mean, log_variance = posterior(w, m, x)
    divergences = autoencoding.divergence(mean, log_variance)

    @jax.jit
    @jax.vmap
    def bound(key):
        z = autoencoding.sample_posterior(key, mean, log_variance)
        return autoencoding.elbo(log_likelihood(w, m, x)(z), divergences)

    bounds = bound(jax.random.split(jax.random.key(0), 20_000))
    # The mean of 20,000 draws, within five of its standard errors.
    error = np.abs(bounds.mean(0) - log_p) / (bounds.std(0) / np.sqrt(len(bounds)))
    assert error.max() < 5 and bounds.std(0).max() < 2


def test_with_the_exact_posterior_every_weight_is_p(model):
    w, m, x, log_p = model

    @functools.partial(jax.jit, static_argnums=1)
    def weights_and_bound(key, num_samples):
        weights = autoencoding.log_weights(
            key, log_likelihood(w, m, x), *posterior(w, m, x), num_samples
        )
        return weights, autoencoding.importance_weighted_bound(weights)

    for num_samples in (1, 7):
        weights, bound = weights_and_bound(jax.random.key(num_samples), num_samples)
        assert weights.shape == (num_samples, BATCH)
        np.testing.assert_allclose(weights, np.tile(log_p, (num_samples, 1)), rtol=1e-12)  # float64
        np.testing.assert_allclose(bound, log_p, rtol=1e-12)


def test_with_another_posterior_the_bound_rises_with_samples_towards_log_p(model):
    w, m, x, log_p = model
    mean, log_variance = posterior(w, m, x)
    mean, log_variance = mean + 0.25, log_variance + 0.5

    @jax.jit
    @jax.vmap
    def weights(key):
        return autoencoding.log_weights(key, log_likelihood(w, m, x), mean, log_variance, 64)

    drawn = np.asarray(weights(jax.random.split(jax.random.key(0), 2000)))  # [trials samples batch]
    bounds_of = jax.jit(jax.vmap(autoencoding.importance_weighted_bound))
    bounds = [float(np.mean(bounds_of(drawn[:, :k])) - log_p.mean()) for k in (1, 2, 4, 16, 64)]
    assert all(later > earlier + 0.01 for earlier, later in zip(bounds, bounds[1:], strict=False))
    assert (
        bounds[0] < -0.5 and -0.05 < bounds[-1] < 0.005
    )  # the standard error of the last one is .001

    # One sample is the ELBO, whose gap is KL(q ‖ posterior) of two Gaussians.
    gap = (
        LATENTS * (np.exp(0.5) - 1 - 0.5) / 2
        + (0.25**2 / np.exp(log_variance - 0.5)).sum(1).mean() / 2
    )
    np.testing.assert_allclose(bounds[0], -gap, rtol=0.03)


def test_divergence_against_draws_and_against_its_definition():
    mean, log_variance = jnp.array([[0.7, -2.0]]), jnp.array([[0.3, -3.0]])
    z = jax.vmap(lambda key: autoencoding.sample_posterior(key, mean, log_variance))(
        jax.random.split(jax.random.key(0), 200_000)
    )
    deviation = np.exp(log_variance / 2)
    ratios = stats.norm.logpdf(z, mean, deviation) - stats.norm.logpdf(z)
    found = autoencoding.divergence(mean, log_variance)
    error = np.abs(ratios.mean(0) - found) / (ratios.std(0) / np.sqrt(len(z)))
    assert error.max() < 5  # standard errors
    assert np.all(autoencoding.divergence(jnp.zeros((1, 3)), jnp.zeros((1, 3))) == 0)


def test_a_trained_linear_vae_is_probabilistic_pca(model):
    """The eigenvalues of the data's covariance give its optimum.

    They give the best ELBO, the noise's variance and the subspace (Tipping & Bishop 1999, equations
    7 and 8).
    """
    generator = np.random.default_rng(3)
    x = generator.normal(size=(200, LATENTS)) @ model[0].T + 0.4 * generator.normal(
        size=(200, FEATURES)
    )
    x = x - x.mean(0)
    eigenvalues, vectors = np.linalg.eigh(x.T @ x / len(x))
    variance = eigenvalues[: FEATURES - LATENTS].mean()
    best = (
        -(
            FEATURES * np.log(2 * np.pi)
            + np.log(eigenvalues[-LATENTS:]).sum()
            + (FEATURES - LATENTS) * np.log(variance)
            + FEATURES
        )
        / 2
    )
    noise = jax.random.normal(jax.random.key(4), (16, len(x), LATENTS))
    # Antithetic draws: the expectation of a quadratic needs little more.
    noise = jnp.concatenate([noise, -noise])

    def loss(params, key):
        mean = x @ params["encoder"]
        log_variance = jnp.broadcast_to(params["log_variance"], mean.shape)
        z = autoencoding.sample_posterior(key, mean, log_variance)
        outputs = jnp.concatenate(
            [z @ params["decoder"], jnp.broadcast_to(params["log_deviation"], x.shape)], axis=1
        )
        log_likelihood = autoencoding.gaussian().log_probability(outputs, jnp.asarray(x))
        return -autoencoding.elbo(
            log_likelihood, autoencoding.divergence(mean, log_variance)
        ).mean()

    params = {
        "encoder": jnp.asarray(generator.normal(size=(FEATURES, LATENTS))) / 3,
        "decoder": jnp.asarray(generator.normal(size=(LATENTS, FEATURES))) / 3,
        "log_variance": jnp.zeros(LATENTS),
        "log_deviation": jnp.zeros(()),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 4000))

    def step(carry, key):
        params, state = carry
        gradients = jax.grad(loss)(params, key)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), 4000)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimizer.init(params))
    )
    evaluated = jax.vmap(lambda key: loss(params, key))(
        jax.random.split(jax.random.key(1), 4000)
    ).mean()
    # In nats, for the noise of training and of the estimate.
    np.testing.assert_allclose(-evaluated, best, atol=0.01)
    np.testing.assert_allclose(jnp.exp(2 * params["log_deviation"]), variance, rtol=0.02)
    subspace = np.linalg.qr(params["decoder"].T)[0]
    cosines = np.linalg.svd(subspace.T @ vectors[:, -LATENTS:])[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_beta_weighs_the_divergence():
    likelihood, divergences = jnp.array([-3.0, -1.0]), jnp.array([[[1.0, 0.5]], [[0.0, 2.0]]])
    np.testing.assert_allclose(autoencoding.elbo(likelihood, divergences, 4.0), [-9.0, -9.0])


def test_a_log_likelihood_is_one_number_for_each_example(unchecked_annotations):
    for shape in ((4, 1), (4, 8, 8)):
        with pytest.raises(ValueError, match=r"one number for each example, \(4,\); got \(4, "):
            autoencoding.elbo(jnp.zeros(shape), jnp.zeros((4, 3)))


def test_free_bits_ignore_channels_below_the_least():
    # [batch places channels].
    divergences = jnp.array([[[0.1, 2.0], [0.2, 1.0]], [[0.1, 0.5], [0.0, 0.5]]])
    # The channel means are (.3 + .1)/2 = .2 and (3 + 1)/2 = 2.
    np.testing.assert_allclose(autoencoding.free_bits(divergences, 0.5), 2.5)
    np.testing.assert_allclose(autoencoding.free_bits(divergences, 0.0), 2.2)
    gradient = jax.grad(lambda d: autoencoding.free_bits(d, 0.5))(divergences)
    assert np.all(gradient[..., 0] == 0) and np.allclose(gradient[..., 1], 0.5)
