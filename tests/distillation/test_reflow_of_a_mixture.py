"""Reflow in one dimension: the coupling stays, the paths become straight, the marginals are kept.

The flow is the exact one of a mixture of two Gaussians. Its pairs (z, x) are monotone: x = T(z) and
T increases. So lines between them do not cross, and the second flow's velocity at x_t is z − x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.diffusion import RectifiedFlow
from genjax.distillation import straightening

FLOW = RectifiedFlow()
COUNT = 4000
TIMES = jnp.linspace(1, 0, 101)
WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])


def velocity(x_t, t):
    """E[z − x | x_t] of the mixture, by Bayes' rule."""
    t = t[:, None]
    variance = ((1 - t) * DEVIATIONS) ** 2 + t**2
    rest = x_t - (1 - t) * MEANS
    posterior = jax.nn.softmax(
        jnp.log(WEIGHTS) - jnp.log(variance) / 2 - rest**2 / (2 * variance), axis=1
    )
    gain = (t - (1 - t) * DEVIATIONS**2) / variance
    return jnp.sum(posterior * (gain * rest - MEANS), axis=1, keepdims=True)


def solve(velocity, z, times):
    """The states of Heun's method from noise z."""

    def step(x, pair):
        t, s = (jnp.full(len(x), time) for time in pair)
        first = velocity(x, t)
        second = velocity(x + (s - t)[:, None] * first, s)
        x = x + (s - t)[:, None] * (first + second) / 2
        return x, x

    _, states = jax.lax.scan(step, z, (times[:-1], times[1:]))
    return jnp.concatenate([z[None], states])


@pytest.fixture(scope="module")
def trajectory():
    """From noise at the quantiles of a shuffled grid, so that it is ordered only by chance."""
    z = jax.random.normal(jax.random.key(0), (COUNT, 1))
    return jax.jit(functools.partial(solve, velocity))(z, TIMES)


def second_velocity(z, x):
    """The velocity of the pairs' lines, which is z − x at the one line through a point."""
    order = jnp.argsort(z[:, 0])
    z, x = z[order, 0], x[order, 0]

    def velocity(x_t, t):
        line = (1 - t[0]) * x + t[0] * z  # increasing, as z and x are
        return jnp.interp(x_t[:, 0], line, z - x)[:, None]

    return velocity


def test_pairs_keep_both_marginals(trajectory):
    """Kolmogorov–Smirnov at 4,000 pairs, with p > 1e-3.

    The test refuses samples whose distribution function is off by 0.05 anywhere: the threshold is
    1.95/√4000 = 0.031, and the largest deviation of 4,000 samples is above 0.019 once in ten times.
    """
    z, x = np.asarray(trajectory[0, :, 0]), np.asarray(trajectory[-1, :, 0])
    cdf = lambda x: sum(
        w * stats.norm.cdf(x, m, s) for w, m, s in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)
    )
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(x, cdf).pvalue > 1e-3
    shifted = x + 0.2  # a shift by a seventh of the deviation moves the function by 0.05 and more
    assert stats.kstest(shifted, cdf).pvalue < 1e-3


def test_reflow_leaves_a_monotone_coupling_as_it_is(trajectory):
    z, x = trajectory[0], trajectory[-1]
    assert (np.diff(np.asarray(x)[np.argsort(np.asarray(z)[:, 0]), 0]) > 0).all()
    again = jax.jit(lambda z: solve(second_velocity(z, x), z, TIMES))(z)[-1]
    np.testing.assert_allclose(again, x, atol=2e-4)


def test_reflow_makes_the_paths_straight(trajectory):
    """One step of the second flow does what the first flow needs a hundred for."""
    z, x = trajectory[0], trajectory[-1]
    measure = functools.partial(straightening.straightness, x=x, z=z, times=TIMES)
    first = measure(velocity, trajectory=trajectory).mean()
    second = second_velocity(z, x)
    lines = jnp.stack([FLOW.corrupt(x, z, jnp.full(COUNT, t)) for t in TIMES])
    assert first > 0.1
    assert measure(second, trajectory=lines).mean() < 1e-4 * first
    one = solve(second, z, jnp.array([1.0, 0.0]))[-1]
    rough = solve(velocity, z, jnp.array([1.0, 0.0]))[-1]
    np.testing.assert_allclose(one, x, atol=2e-3)
    assert jnp.abs(rough - x).max() > 0.5
