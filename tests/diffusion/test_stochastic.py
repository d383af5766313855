"""Samplers that draw noise, against their equations in plain NumPy with the same noise, and against their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    ddim,
    sample_keys,
    samplers,
)

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
FLOW, COSINE, EDM_PROCESS = RectifiedFlow(), VariancePreservingCosine(), EDM()


def karras_times(num_steps):
    """Karras et al. 2022, equation 5, written here for tests alone."""
    i = np.arange(num_steps)
    return np.append((80 ** (1 / 7) + i / (num_steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)


def posterior(x_t, alpha, sigma, xp=np):
    """E[x | x_t] and E[z | x_t] of a mixture of Gaussians in every coordinate, with `xp` NumPy or jax.numpy."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    residual = x_t[..., None] - alpha * MEANS
    weights = WEIGHTS / xp.sqrt(variance) * xp.exp(-(residual**2) / (2 * variance) + 50)  # far tails, not 0/0
    weights = weights / weights.sum(-1, keepdims=True)
    clean = xp.sum(weights * (MEANS + alpha * DEVIATIONS**2 / variance * residual), -1)
    return clean, xp.sum(weights * sigma / variance * residual, -1)


def mixture_denoiser(process):
    def denoise(x_t, t):
        expand = lambda a: a.reshape(a.shape + (1,) * x_t.ndim)
        return Prediction(*posterior(x_t, expand(process.alpha(t)), expand(process.sigma(t)), jnp))

    return denoise


# The three processes in NumPy alone, t ↦ (alpha, sigma, alpha', sigma', t at sigma/alpha).
REFERENCES = {
    FLOW: (lambda t: 1 - t, lambda t: t, lambda t: -1.0, lambda t: 1.0, lambda rho: rho / (1 + rho)),
    COSINE: (
        lambda t: np.cos(np.pi / 2 * t),
        lambda t: np.sin(np.pi / 2 * t),
        lambda t: -np.pi / 2 * np.sin(np.pi / 2 * t),
        lambda t: np.pi / 2 * np.cos(np.pi / 2 * t),
        lambda rho: np.arctan(rho) * 2 / np.pi,
    ),
    EDM_PROCESS: (lambda t: 1.0, lambda t: t, lambda t: 0.0, lambda t: 1.0, lambda rho: rho),
}
# Inside their domains, where every formula of the papers is finite.
INTERIOR = {
    FLOW: np.array([0.9, 0.75, 0.5, 0.3, 0.22, 0.05]),
    COSINE: np.array([0.95, 0.7, 0.5, 0.3, 0.1, 0.02]),
    EDM_PROCESS: np.array([40.0, 10.0, 2.0, 0.9, 0.3, 0.01]),
}
BATCH = 8
everywhere = pytest.mark.parametrize("process", REFERENCES, ids=lambda p: type(p).__name__)


def keys_of(batch, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(batch))


def draw(keys, number, shape=()):
    return np.asarray(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), shape))(keys))


def start(process, t, batch=BATCH):
    scale = np.sqrt(REFERENCES[process][0](t) ** 2 + REFERENCES[process][1](t) ** 2)
    return scale * np.linspace(-2.0, 2.0, batch)


def assert_follows(sampler, process, step, per_step=1, rows=None, **options):
    """The sampler's trajectory is that of `step(x, t, s, draw)`, where draw(j, churn) is a row's noise."""
    alpha, sigma = REFERENCES[process][:2]
    times, keys = INTERIOR[process], keys_of(BATCH)
    x = start(process, times[0])
    expected = [x]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noise_of = lambda row, churn=False, i=i: draw(keys, 2 * (per_step * i + row) + (not churn))
        x = step(x, t, s, noise_of, lambda x, t: posterior(x, alpha(t), sigma(t)))
        expected.append(x)
    found = sampler(
        mixture_denoiser(process),
        process,
        jnp.asarray(expected[0]),
        jnp.asarray(times),
        keys=keys,
        trajectory=True,
        **options,
    )
    assert found.shape == (len(times), BATCH)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    return np.asarray(found[-1])


@everywhere
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_equation_16(process, eta, float64):
    """With abar = alpha²/(alpha² + sigma²) and x_t scaled to it, as the paper has it for variance preserving ones."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        scale = lambda t: np.sqrt(alpha(t) ** 2 + sigma(t) ** 2)
        abar_t, abar_s = (alpha(t) / scale(t)) ** 2, (alpha(s) / scale(s)) ** 2
        noise = predict(x, t)[1]
        deviation = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
        clean = (x / scale(t) - np.sqrt(1 - abar_t) * noise) / np.sqrt(abar_t)
        x = np.sqrt(abar_s) * clean + np.sqrt(1 - abar_s - deviation**2) * noise + deviation * noise_of(0)
        return scale(s) * x

    assert_follows(ddim, process, step, eta=eta)


@everywhere
def test_ddpm_is_the_posterior_of_two_noise_levels(process, float64):
    """q(x_s | x_t, x) by Bayes: the prior N(alpha_s·x, sigma_s²) and the likelihood of x_t = a·x_s + N(0, b²)."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        a = alpha(t) / alpha(s)
        b = np.sqrt(sigma(t) ** 2 - a**2 * sigma(s) ** 2)
        precision = 1 / sigma(s) ** 2 + a**2 / b**2
        mean = (alpha(s) * predict(x, t)[0] / sigma(s) ** 2 + a * x / b**2) / precision
        return mean + noise_of(0) / np.sqrt(precision)

    ddpm = assert_follows(samplers.ddpm, process, step)
    times, keys = jnp.asarray(INTERIOR[process]), keys_of(BATCH)
    same = ddim(
        mixture_denoiser(process), process, jnp.asarray(start(process, times[0])), times, keys=keys, eta=1.0
    )
    np.testing.assert_array_equal(ddpm, same)


@everywhere
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_learned_variance_runs_from_the_least_to_the_largest(process, share, float64):
    """The largest one is Var[x_s | x_t] for data N(0, 1): a normal conditioned on another."""
    alpha, sigma = REFERENCES[process][:2]
    times, keys = INTERIOR[process], keys_of(BATCH)

    def denoiser(x_t, t):
        return Prediction(jnp.zeros_like(x_t), jnp.zeros_like(x_t), jnp.full_like(x_t, share))

    found = samplers.ddpm(denoiser, process, jnp.zeros(BATCH), jnp.asarray(times), keys=keys, trajectory=True)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a = alpha(t) / alpha(s)
        b2 = sigma(t) ** 2 - a**2 * sigma(s) ** 2
        total_t, total_s = (alpha(u) ** 2 + sigma(u) ** 2 for u in (t, s))
        least, largest = b2 * sigma(s) ** 2 / sigma(t) ** 2, total_s - (a * total_s) ** 2 / total_t
        deviation = np.exp((1 - share) * np.log(least) / 2 + share * np.log(largest) / 2)
        np.testing.assert_allclose(found[i + 1], deviation * draw(keys, 2 * i + 1), rtol=1e-11)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_no_learned_variance_at_the_clean_end(share):
    denoiser = lambda x_t, t: Prediction(0 * x_t, 0 * x_t, jnp.full_like(x_t, share))
    found = samplers.ddpm(denoiser, FLOW, jnp.ones(BATCH), jnp.array([1.0, 0.5, 0.0]), keys=keys_of(BATCH))
    np.testing.assert_array_equal(found, 0)


@everywhere
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral_is_ddim_by_another_name(process, eta, float64):
    """k-diffusion's step in rho = sigma/alpha: Euler down to below rho_s, and noise up to it."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        rho_t, rho_s = sigma(t) / alpha(t), sigma(s) / alpha(s)
        up = min(rho_s, eta * np.sqrt(rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2))
        down = np.sqrt(rho_s**2 - up**2)
        clean, _ = predict(x, t)
        slope = (x / alpha(t) - clean) / rho_t
        return alpha(s) * (x / alpha(t) + slope * (down - rho_t) + noise_of(0) * up)

    assert_follows(samplers.euler_ancestral, process, step, eta=eta)
