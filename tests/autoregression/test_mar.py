import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from genjax.autoregression import mar_loss, mar_sample
from genjax.autoregression.mar import random_share
from genjax.autoregression.masked import cosine, linear, masked_counts
from genjax.diffusion import RectifiedFlow, simple_loss, uniform, velocity


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_shares_are_those_of_the_truncated_normal():
    """Mean .867017 and deviation .083548; a Kolmogorov–Smirnov test against scipy."""
    shares = np.asarray(jax.jit(jax.vmap(random_share))(keys(20_000)))
    law = stats.truncnorm(-0.3 / 0.25, 0, loc=1, scale=0.25)
    assert abs(law.mean() - 0.867017) < 1e-6 and abs(law.std() - 0.083548) < 1e-6
    assert stats.kstest(shares, law.cdf).pvalue > 1e-3


def test_one_token_a_step_has_the_exact_law():
    """Four jointly normal tokens: states are conditional means and deviations given the others."""
    length, count = 4, 20_000
    factor = np.random.default_rng(0).standard_normal((length, length))
    covariance = factor @ factor.T + 0.2 * np.eye(length)
    precise = jnp.asarray(covariance, jnp.float32)

    def conditional(x, mask):
        """Return mean and deviation of every place, given those that are not masked."""
        seen = ~mask
        block = jnp.where(seen[:, None] & seen, precise, jnp.eye(length))
        across = jnp.where(seen, precise, 0)
        weights = jnp.linalg.solve(block, across.T).T
        variance = jnp.diag(precise) - jnp.sum(weights * across, axis=1)
        return weights @ x[:, 0], jnp.sqrt(jnp.maximum(variance, 0))

    def draw(keys, states, share):
        mean, deviation = states
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return (mean + deviation * noise)[..., None]

    counts = masked_counts(linear, length, length)
    sample = jax.jit(lambda keys: mar_sample(keys, jax.vmap(conditional), draw, 1, counts))
    x = np.asarray(sample(keys(count)))[..., 0]
    # A covariance of n samples is off by √(2/n) of its variances: five deviations.
    scale = np.sqrt(np.diag(covariance))
    error = (np.cov(x.T) - covariance) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * np.sqrt(2 / count)
    np.testing.assert_allclose(x.mean(0) / scale, 0, atol=5 / np.sqrt(count))


def test_each_place_is_drawn_once_and_only_drawn_ones_are_seen():
    """The token that is drawn is the share after the step, so it tells the step."""
    length, batch = 16, 3
    counts = masked_counts(cosine, length, 5)

    def states(x, mask):
        return jnp.broadcast_to(jnp.where(mask[..., None], x, 0).max(), x.shape)

    def draw(keys, states, share):
        assert states.shape == (batch, 5, 1)  # the most tokens of a step
        return share + 1000 * states

    x = np.asarray(jax.jit(lambda keys: mar_sample(keys, states, draw, 1, counts))(keys(batch)))
    x = x[..., 0]
    before = np.append(length, counts[:-1, -1])
    for step, share in enumerate(1 - counts[:, -1] / length):
        drawn = np.isclose(x, share).sum(axis=1)
        np.testing.assert_array_equal(drawn, before[step] - counts[step, -1])
    assert np.max(np.diff(-np.append(length, counts[:, -1]))) == 5
    assert x.max() <= 1  # no masked token was seen
    assert len({tuple(row) for row in x}) == batch  # orders of their own


def test_the_loss_is_of_masked_tokens_alone():
    """The denoiser answers with the mean velocity −x for masked tokens and wrongly for others.

    Then the error of a masked token is its noise z, and the loss is E[z²] = 1.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8, 3)), jnp.float32)
    times, masks = [], []

    def states(x, mask, label):
        masks.append(mask)
        return {"mask": mask[..., None], "x": x + 0 * label[:, None, None]}

    def denoise(x_t, t, states):
        times.append(t)
        return jnp.where(states["mask"], -states["x"], 50.0)

    loss = functools.partial(simple_loss, process=RectifiedFlow(), target=velocity, times=uniform)
    losses = mar_loss(jax.random.key(0), states, denoise, x, jnp.zeros(64), loss=loss, repeats=4)
    assert losses.shape == (64,) and times[0].shape == (256, 8)
    assert len(np.unique(times[0])) > 2000  # a time of its own for each token
    # About 64·4·7·3 squares of variance 2: four deviations.
    np.testing.assert_allclose(losses.mean(), 1, atol=4 * np.sqrt(2 / (64 * 4 * 7 * 3)))
    # The authors mask ⌈rate·length⌉ tokens: 5.6 are 6.
    share = lambda key: jnp.float32(0.7)
    mar_loss(jax.random.key(0), states, denoise, x, jnp.zeros(64), loss=loss, share=share)
    np.testing.assert_array_equal(masks[1].sum(axis=1), 6)
    assert times[1].shape == (4 * 64, 8)  # their number of noises
