"""Improved mean flow with the guidance scale and interval as conditioning."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.distillation import mean_flow
from genjax.distillation.distances import squared

KEY = jax.random.key(0)
T = jnp.array([0.2, 0.99, 0.9, 0.55, 0.7])
S = jnp.array([0.2, 0.1, 0.3, 0.5, 0.7])
DROPPED = jnp.array([False, False, True, False, False])
MEANS, NULL = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0]), jnp.full(5, 0.25)
Z = jax.random.normal(jax.random.key(1), (5, 3))
X = jax.random.normal(jax.random.key(2), (5, 3))


def loss(network, x, pairs=(T, S), max_guidance_scale=8.0):
    return mean_flow.guided_mean_flow_loss(
        KEY,
        network,
        x,
        MEANS,
        NULL,
        DROPPED,
        pairs=lambda *_: pairs,
        max_guidance_scale=max_guidance_scale,
        distance=squared,
        noise=Z,
    )[0]


def told(scale, interval):
    return 0.3 * scale + interval[:, 0] - 2 * interval[:, 1]


def network(x, t, s, c, scale, interval):
    """Two answers whose derivatives are known: u moves by 0.7·dx/dt + s with t."""
    column = lambda a: a[:, None]
    u = 0.7 * x + column(t * s + c + told(scale, interval))
    return u, -0.4 * x + column(t - s - 2 * c + told(scale, interval))


def test_the_loss_is_the_papers_equations():
    """With numbers of the law, by NumPy."""
    interval = np.asarray(mean_flow.guidance_intervals(jax.random.split(KEY, 3)[2], T, S))
    u = np.asarray(jax.random.uniform(jax.random.split(KEY, 3)[1], T.shape))
    scale = np.exp(u * np.log(8))
    t, s, dropped = (np.asarray(a) for a in (T, S, DROPPED))
    now = np.where((interval[:, 0] <= t) & (t <= interval[:, 1]) & ~dropped, scale, 1.0)
    assert (now > 1).sum() == 3  # one is outside of its interval, one has no condition
    c = np.where(dropped, NULL, MEANS)
    x_t = np.asarray(X) * (1 - t)[:, None] + np.asarray(Z) * t[:, None]
    always = np.tile([0.0, 1.0], (5, 1))
    own = np.asarray(network(x_t, t, t, c, now, always)[1])
    unconditional = np.asarray(network(x_t, t, t, NULL, np.ones(5), always)[1])
    goal = np.asarray(Z - X) + (1 - 1 / now)[:, None] * (own - unconditional)
    average, velocity = network(x_t, t, s, c, scale, interval)
    compound = average + (t - s)[:, None] * (0.7 * own + s[:, None])
    expected = ((compound - goal) ** 2).mean(1) + ((velocity - goal) ** 2).mean(1)
    # float32: a dozen operations on numbers up to 30.
    np.testing.assert_allclose(loss(network, X), expected, rtol=1e-5)
    # The gradient in factors of u and v passes through neither goal nor derivative.
    scaled = lambda factors: lambda *args: tuple(jnp.stack(network(*args)) * factors[:, None, None])
    slopes = jax.jit(jax.jacfwd(lambda factors: loss(scaled(factors), X)))(jnp.ones(2))
    by_hand = 2 * (compound - goal) * average, 2 * (velocity - goal) * velocity
    np.testing.assert_allclose(slopes.T, np.mean(by_hand, axis=2), rtol=1e-4)


def test_without_guidance_it_is_improved_mean_flow_with_a_velocity_head():
    scale, always = jnp.ones(5), jnp.tile(jnp.array([0.0, 1.0]), (5, 1))
    deaf = lambda x, t, s, c, *_: network(x, t, s, c, scale[:1], always[:1])
    c = jnp.where(DROPPED, NULL, MEANS)
    options = dict(pairs=lambda *_: (T, T), distance=squared, noise=Z)
    expected, _ = mean_flow.improved_mean_flow_loss(
        KEY,
        lambda x, t, s: deaf(x, t, s, c)[0],
        X,
        head=lambda x, t: deaf(x, t, t, c)[1],
        **options,
    )
    np.testing.assert_allclose(loss(deaf, X, (T, T), max_guidance_scale=1.0), expected, rtol=1e-6)


def test_the_velocity_of_classifier_free_guidance_is_the_solution():
    """Each condition is one point μ, whose velocity is (x_t − μ)/t; of the null condition too.

    v(c, ω) = v(∅) + ω·(v(c) − v(∅)) then has no loss, whatever ω.
    """

    def guided(x, t, s, c, scale, interval):
        of = lambda mean: (x - mean[:, None]) / t[:, None]
        null = jnp.full_like(c, 0.25)
        v = of(null) + scale[:, None] * (of(c) - of(null))
        return v, v

    x = jnp.broadcast_to(jnp.where(DROPPED, NULL, MEANS)[:, None], (5, 3))
    # float32: velocities reach 100, so that squares of their rounding reach 1e-9.
    np.testing.assert_allclose(loss(guided, x, (T, T)), 0, atol=1e-8)
    half = lambda *args: tuple(0.9 * v for v in guided(*args))
    assert np.all(loss(half, x, (T, T)) > 1e-3)


def test_intervals_are_those_of_the_paper():
    ends = np.asarray(mean_flow.guidance_intervals(KEY, jnp.ones(4000), jnp.zeros(4000)))
    # Means of 4,000 uniform numbers on an interval of 1/2 deviate by .0023; four times that.
    np.testing.assert_allclose(ends.mean(0), [0.25, 0.75], atol=0.01)
    assert np.all(ends[:, 0] < 0.5) and np.all(ends[:, 1] >= 0.5) and np.all(ends <= 1)
    diagonal = mean_flow.guidance_intervals(KEY, T, S)[np.asarray(T == S)]
    np.testing.assert_array_equal(diagonal, [[0, 1], [0, 1]])
