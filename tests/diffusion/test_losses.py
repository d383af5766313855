import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    RectifiedFlow,
    VarianceExploding,
    clean,
    noise,
    simple_loss,
    sums_by_time,
    uniform,
    velocity,
)

BATCH, SHAPE = 20_000, (2, 3)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, *SHAPE)), jnp.float32)


def run(x, network=lambda x, t: jnp.zeros_like(x), process=None, target=velocity, **options):
    """Losses and times as float64 NumPy arrays, and what the network was given."""
    seen = []

    def apply(x_t, t):
        seen.append((np.asarray(x_t, np.float64), np.asarray(t, np.float64)))
        return network(x_t, t)

    losses, t = simple_loss(
        jax.random.key(0),
        apply,
        x,
        process=process or RectifiedFlow(),
        target=target,
        times=uniform,
        **options,
    )
    assert losses.shape == t.shape == (BATCH,) and losses.dtype == jnp.float32 and len(seen) == 1
    return np.asarray(losses, np.float64), np.asarray(t, np.float64), *seen[0]


def tail(t):
    return t[:, None, None]


@pytest.mark.parametrize("target", [clean, noise, velocity])
def test_against_numpy(x, target):
    """The noise is recovered from what the network saw; then the squared error is written out."""
    network = lambda x_t, t: jnp.tanh(x_t) + t[:, None, None]
    losses, t, x_t, network_time = run(x, network, target=target)
    np.testing.assert_array_equal(network_time, t)
    far = t > 0.1  # where the division amplifies float32's rounding by ten at most
    data, x_t, t, losses = np.asarray(x, np.float64)[far], x_t[far], t[far], losses[far]
    z = (x_t - (1 - tail(t)) * data) / tail(t)
    y = {clean: data, noise: z, velocity: z - data}[target]
    expected = np.mean((np.tanh(x_t) + tail(t) - y) ** 2, axis=(1, 2))
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=2e-5)


def test_noise_is_normal_and_independent_of_data_and_time(x):
    _, t, x_t, _ = run(x)
    far = t > 0.1
    z = (x_t - (1 - tail(t)) * np.asarray(x)) / tail(t)
    z, t, data = z[far].reshape(far.sum(), -1), t[far], np.asarray(x)[far].reshape(far.sum(), -1)
    error = 1 / np.sqrt(len(t))  # standard error of means and correlations of unit normals
    assert np.abs(z.mean(0)).max() < 4 * error and np.abs(z.var(0) - 1).max() < 4 * np.sqrt(2) * error
    correlation = np.corrcoef(np.concatenate([z, data, t[:, None]], axis=1).T)
    assert np.abs(correlation - np.eye(13)).max() < 4 * error


def test_time_and_noise_draw_from_different_keys(x):
    """One key for both would make the i-th number drawn for each a function of the other."""
    _, t, x_t, _ = run(x)
    z = (x_t - (1 - tail(t)) * np.asarray(x)) / tail(np.maximum(t, 1e-6))
    rank = lambda a: np.argsort(np.argsort(a))
    assert abs(np.corrcoef(rank(t), rank(z.reshape(-1)[:BATCH]))[0, 1]) < 4 / np.sqrt(BATCH)


@pytest.mark.parametrize(
    "target, expected, deviation",
    [
        (clean, 0.25, 0),  # E[x²]
        (noise, 1.0, np.sqrt(2)),  # E[z²], and the deviation of z²
        (velocity, 1.25, np.sqrt(3)),  # E[(z − x)²] = 1 + x²; the deviation √(2 + 4x²)
    ],
)
def test_value_of_the_zero_network(target, expected, deviation):
    losses, *_ = run(jnp.full((BATCH, *SHAPE), 0.5), target=target)
    error = deviation / np.sqrt(BATCH * np.prod(SHAPE))
    np.testing.assert_allclose(losses.mean(), expected, atol=4 * error + 1e-6)


def test_weighting_multiplies_each_example(x):
    plain, t, *_ = run(x)
    weighted, *_ = run(x, weighting=lambda process, target, t: process.alpha(t) + 2 * t)
    np.testing.assert_allclose(weighted, (1 + t) * plain, rtol=1e-5)


def test_network_sees_the_scaled_input_and_times_of_the_domain(x):
    process = VarianceExploding(domain=(0.5, 1.0))
    _, t, seen, network_time = run(x, process=process, target=noise)
    assert 0.5 <= t.min() < 0.51 and 0.99 < t.max() <= 1
    np.testing.assert_array_equal(network_time, t)
    # x and z have variance one, so x_t has 1 + sigma², which the scale undoes.
    np.testing.assert_allclose(seen.var(), 1, rtol=4 * np.sqrt(2 / seen.size))


def test_conditioning_reaches_the_network_and_low_precision_outputs_are_compared_in_float32(x):
    def apply(x, t, label, extra):
        assert (label, extra) == ("label", "extra")
        return jnp.full_like(x, 1 / 3, jnp.bfloat16)

    losses, _ = simple_loss(
        jax.random.key(0),
        apply,
        0 * x[:4],
        "label",
        "extra",
        process=RectifiedFlow(),
        target=clean,
        times=uniform,
    )
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, float(jnp.bfloat16(1 / 3)) ** 2, rtol=1e-6)


def test_sums_by_time_put_each_loss_in_its_part_of_the_domain():
    process = RectifiedFlow(domain=(0.2, 1.0))
    t = jnp.array([0.2, 0.35, 0.41, 0.99, 1.0])
    sums, counts = sums_by_time(jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), t, process, 4)
    np.testing.assert_array_equal(sums, [3, 4, 0, 24])  # the domain's end belongs to the last part
    np.testing.assert_array_equal(counts, [2, 1, 0, 2])
