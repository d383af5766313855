import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import quick_jit
from scipy.spatial.distance import cosine
from scipy.special import log_ndtr, ndtr

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreservingTable,
    bound_step,
    clean,
    hybrid_loss,
    noise,
    simple_loss,
    stratified,
    sums_by_time,
    to_domain,
    uniform,
    uniform_grid,
    v,
    velocity,
)
from genjax.diffusion.losses import discretized_nll, step_divergence, step_variances
from genjax.diffusion.samplers.stochastic import ddpm

BATCH, SHAPE = 20_000, (2, 3)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, *SHAPE)), jnp.float32)


def run(x, network=lambda x, t: jnp.zeros_like(x), process=None, target=velocity, **options):
    """Return losses and times as float64 NumPy arrays, and the network's inputs."""
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
    """The noise is recovered from the network's input, and the squared error is written out."""
    network = lambda x_t, t: jnp.tanh(x_t) + t[:, None, None]
    losses, t, x_t, network_time = run(x, network, target=target)
    np.testing.assert_array_equal(network_time, t)
    # There the division amplifies float32's rounding by at most ten.
    far = t > 0.1
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
    assert (
        np.abs(z.mean(0)).max() < 4 * error and np.abs(z.var(0) - 1).max() < 4 * np.sqrt(2) * error
    )
    correlation = np.corrcoef(np.concatenate([z, data, t[:, None]], axis=1).T)
    assert np.abs(correlation - np.eye(13)).max() < 4 * error


def test_time_and_noise_draw_from_different_keys(x):
    """With one key for both, each number drawn for one would be a function of the other."""
    _, t, x_t, _ = run(x)
    z = (x_t - (1 - tail(t)) * np.asarray(x)) / tail(np.maximum(t, 1e-6))
    rank = lambda a: np.argsort(np.argsort(a))
    assert abs(np.corrcoef(rank(t), rank(z.reshape(-1)[:BATCH]))[0, 1]) < 4 / np.sqrt(BATCH)


@pytest.mark.parametrize(
    "target, expected, deviation",
    [
        (clean, 0.25, 0),  # E[x²]
        (noise, 1.0, np.sqrt(2)),  # E[z²], and the deviation of z²
        # E[(z − x)²] = 1 + x², and the deviation √(2 + 4x²).
        (velocity, 1.25, np.sqrt(3)),
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
    # x and z have variance one, so x_t has 1 + sigma², which the scale removes.
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


def test_the_direction_is_that_of_the_channels(x):
    """It equals SciPy's cosine distance at every place.

    A network of zeros has no direction and a finite gradient.
    """
    guess = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)

    def losses(output, **options):
        return simple_loss(
            jax.random.key(0),
            lambda *_: output,
            x[:4],
            process=RectifiedFlow(),
            target=clean,
            times=uniform,
            **options,
        )[0]

    added = losses(guess, direction_weight=0.5) - losses(guess)
    pairs = zip(
        guess.reshape(4, -1, SHAPE[-1]), np.asarray(x[:4]).reshape(4, -1, SHAPE[-1]), strict=True
    )
    expected = [np.mean([cosine(a, b) for a, b in zip(*images, strict=True)]) for images in pairs]
    # The added constant matters for short vectors.
    np.testing.assert_allclose(added, 0.5 * np.array(expected), atol=1e-3)
    gradient = jax.grad(lambda output: losses(output, direction_weight=1.0).sum())(
        jnp.zeros_like(guess)
    )
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3


def test_the_noise_may_be_given(x):
    """The losses equal those of the same noise drawn.

    A network that knows both ends has loss zero.
    """
    x = x[:64]
    arguments = dict(process=RectifiedFlow(), target=velocity, times=uniform)
    network = lambda x_t, t: jnp.tanh(x_t)
    drawn, t = simple_loss(jax.random.key(0), network, x, **arguments)
    noise = jax.random.normal(jax.random.split(jax.random.key(0))[1], x.shape)
    given, same = simple_loss(jax.random.key(0), network, x, noise=noise, **arguments)
    np.testing.assert_array_equal(given, drawn)
    np.testing.assert_array_equal(same, t)
    other = jnp.flip(x, 0)

    def knowing(x_t, t):
        np.testing.assert_allclose(x_t, (1 - tail(t)) * x + tail(t) * other, rtol=1e-6, atol=1e-6)
        return other - x

    bridge, _ = simple_loss(jax.random.key(0), knowing, x, noise=other, **arguments)
    np.testing.assert_array_equal(bridge, 0)


# --- Learned variance.


def posterior(alpha, sigma, a, x, x_t):
    """Return mean and variance of x_s given x_t and x, by Bayes.

    x_s ~ N(alpha_s·x, sigma_s²) and x_t ~ N(a·x_s, b²). `alpha` and `sigma` are pairs, at s and at
    t.
    """
    b2 = sigma[1] ** 2 - a**2 * sigma[0] ** 2
    precision = 1 / sigma[0] ** 2 + a**2 / b2
    return (alpha[0] * x / sigma[0] ** 2 + a * x_t / b2) / precision, 1 / precision, b2


divergence_of_table = quick_jit(functools.partial(step_divergence, VariancePreservingTable()))
bound_of_table = quick_jit(functools.partial(bound_step, VariancePreservingTable()))


@pytest.mark.parametrize("index", [1, 2, 300, 999])
def test_divergence_of_ddpm_steps(index, float64):
    """It is that of two Gaussians from DDPM's betas.

    Nichol & Dhariwal 2021, equations 10, 11 and 15.
    """
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = np.sqrt(products), np.sqrt(1 - products)
    random = np.random.default_rng(index)
    x, x_hat, z = random.standard_normal((3, 4, 5))
    fraction = random.uniform(-0.2, 1.2, (4, 5))
    pair = slice(index - 1, index + 1)
    a = alpha[index] / alpha[index - 1]
    x_t = alpha[index] * x + sigma[index] * z
    mean_q, tilde, beta = posterior(alpha[pair], sigma[pair], a, x, x_t)
    mean_p, *_ = posterior(alpha[pair], sigma[pair], a, x_hat, x_t)
    log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(tilde)
    expected = 0.5 * (
        log_variance - np.log(tilde) + (tilde + (mean_q - mean_p) ** 2) / np.exp(log_variance) - 1
    )
    t = np.full(4, (index + 1) / 1000)
    result = divergence_of_table(t, t - 1 / 1000, x_hat - x, fraction)
    # beta, about 1e-4, is a difference of products near 1, in the reference too, so it has 1e-12
    # relative error. Its square root and the rounding of the products over 1000 factors bring the
    # rest.
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-11)
    in_bits = bound_of_table(x, t, x_hat - x, fraction)
    np.testing.assert_allclose(in_bits, expected.mean(1) / np.log(2), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("process", [RectifiedFlow(), VarianceExploding(), TrigFlow(), EDM()])
def test_divergence_and_variances_of_any_process(process, float64):
    s, t = (
        to_domain(process, jnp.array([0.1, 0.5, 0.8])),
        to_domain(process, jnp.array([0.13, 0.6, 0.95])),
    )
    alpha, sigma = (np.array([f(s), f(t)])[..., None] for f in (process.alpha, process.sigma))
    x, x_hat, x_t = np.random.default_rng(0).standard_normal((3, 3, 5))
    mean_q, least, b2 = posterior(alpha, sigma, alpha[1] / alpha[0], x, x_t)
    mean_p, *_ = posterior(alpha, sigma, alpha[1] / alpha[0], x_hat, x_t)
    # The variance of x_s given x_t for x ~ N(0, 1), again by Bayes.
    largest = 1 / (1 / (alpha[0] ** 2 + sigma[0] ** 2) + (alpha[1] / alpha[0]) ** 2 / b2)
    for result, expected in zip(step_variances(process, t, s), (least, largest), strict=True):
        np.testing.assert_allclose(result, expected[:, 0], rtol=1e-11)
    variance = np.sqrt(least * largest)
    expected = (np.log(variance / least) + (least + (mean_q - mean_p) ** 2) / variance - 1) / 2
    result = step_divergence(process, t, s, jnp.asarray(x_hat - x), jnp.full((3, 5), 0.5))
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_the_best_denoiser_of_normal_data_wants_the_largest_variance(every_process, float64):
    """For x ~ N(0, 1) the exact p(x_s | x_t) has the largest variance.

    The expected divergence is then the information of x_s about x beyond x_t: half the log of the
    ratio of the variances. With any other fraction it is larger.
    """
    process = every_process
    s, t = to_domain(process, jnp.array([0.2, 0.6])), to_domain(process, jnp.array([0.3, 0.9]))
    # The root of the expected square.
    error = process.sigma(t) / jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
    value = lambda fraction: step_divergence(
        process, t, s, error[:, None], jnp.full((2, 1), fraction)
    )[:, 0]
    least, largest = step_variances(process, t, s)
    np.testing.assert_allclose(value(1.0), jnp.log(largest / least) / 2, rtol=1e-10)
    assert np.all(value(0.8) > value(1.0)) and np.all(value(1.2) > value(1.0))


def test_the_variances_are_those_that_ancestral_sampling_draws_with(every_process, float64):
    times = uniform_grid(every_process, 5)[:-1]  # the last step draws nothing
    table = ddpm.table(every_process, times)
    least, largest = step_variances(every_process, times[:-1], times[1:])
    np.testing.assert_allclose(table.fresh**2, least, rtol=1e-11)
    np.testing.assert_allclose(table.largest**2, largest, rtol=1e-11)


@pytest.mark.parametrize("deviation", [0.0005, 0.01, 2.0])
def test_discretized_likelihood(deviation, float64):
    """It equals differences of normal distribution functions, and the mass over all levels is 1."""
    levels, mean = np.arange(256) / 127.5 - 1, np.array([-1.1, -0.3, 0.002, 1.0])[:, None]
    arguments = (jnp.asarray(a) for a in np.broadcast_arrays(levels, mean, np.float64(deviation)))
    result = np.asarray(discretized_nll(*arguments))
    np.testing.assert_allclose(np.exp(-result).sum(1), 1, rtol=1e-12)
    low, high = (np.arange(256) - 128) / 127.5 - mean, (np.arange(256) - 127) / 127.5 - mean
    low[:, 0], high[:, -1] = -np.inf, np.inf
    # Take the tail on the interval's own side, because only that tail has digits far out.
    near, far = (
        np.where(low + high > 0, low, -high) / deviation,
        np.where(low + high > 0, high, -low) / deviation,
    )
    mass = ndtr(-near) - ndtr(-far)
    seen = mass > 1e-290
    assert seen.mean() > 0.01
    np.testing.assert_allclose(
        result[seen], -np.log(mass[seen]), rtol=1e-10, atol=1e-15
    )  # 1 − 1e-16
    # Below float64's smallest number only the nearer end matters.
    np.testing.assert_allclose(result[~seen], -log_ndtr(-near[~seen]), rtol=1e-6)


def test_last_step_is_the_likelihood_of_256_levels(float64):
    """At DDPM's first index the mean is x̂, and the variance is between that of index 1 and beta_0.

    The posterior variance of the first index itself is 0 (Nichol & Dhariwal 2021, as released).
    """
    betas = np.linspace(1e-4, 0.02, 1000)
    tilde = betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (3, 40)) / 127.5 - 1
    error, fraction = 0.01 * random.standard_normal((3, 40)), random.uniform(0, 1, (3, 40))
    t = np.full(3, 1 / 1000)
    result = bound_of_table(x, t, error, fraction)
    deviation = np.sqrt(betas[0] ** fraction * tilde ** (1 - fraction))
    expected = np.mean(quick_jit(discretized_nll)(x, x + error, deviation), axis=1) / np.log(2)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_a_step_is_the_last_if_it_would_end_within_half_a_step_of_the_clean_end(float64):
    """Between the times of the table, 1.4 and 1.6 steps from the clean end."""
    random, t = np.random.default_rng(0), np.array([0.0014, 0.0016])
    x, error, fraction = np.ones((2, 9)), *random.uniform(0, 1, (2, 2, 9)) / 100
    result = bound_of_table(x, t, error, fraction)
    divergence = divergence_of_table(t, t - 0.001, error, fraction).mean(1) / np.log(2)
    last, before = np.isclose(result, divergence, rtol=1e-9)
    assert before and not last


@pytest.mark.parametrize("process", [RectifiedFlow(), VariancePreservingTable()])
def test_the_bound_and_its_gradient_are_finite_at_all_times(process):
    t = to_domain(process, jnp.asarray([1e-6, 5e-4, 1.4e-3, 1.6e-3, 0.5, 0.99]))
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 20)), jnp.float32)

    def total(fraction, x, t):
        return bound_step(process, x, t, 0.1 * x, fraction).sum()

    value, gradient = quick_jit(jax.value_and_grad(total))(jnp.full((6, 20), 0.5), x, t)
    assert (
        np.isfinite(value)
        and np.all(np.isfinite(gradient))
        and np.all(np.any(gradient != 0, axis=1))
    )


def test_hybrid_loss(x):
    """The loss is the simple loss plus a thousandth of a thousand terms of the bound.

    The bound trains only the variance.
    """
    x, process = x[:64], VariancePreservingTable()
    arguments = dict(process=process, target=noise, times=uniform)

    def network(mean, variance):
        return lambda x_t, t: jnp.concatenate([mean * x_t, variance * jnp.cos(x_t)], axis=-1)

    def hybrid(mean, variance, **more):
        inputs = jax.random.key(0), network(mean, variance), x
        return hybrid_loss(*inputs, **arguments | more)

    simple = lambda mean, **more: simple_loss(
        jax.random.key(0), lambda x, t: mean * x, x, **arguments | more
    )
    loss, t = hybrid(0.3, 0.5)
    plain, same = simple(0.3)
    np.testing.assert_array_equal(t, same)
    seen = []
    hybrid_loss(
        jax.random.key(0),
        lambda x_t, t: seen.append(x_t) or network(0.3, 0.5)(x_t, t),
        x,
        **arguments,
    )
    (x_t,) = seen
    more = dict(variates=stratified, time_axes=2)
    of_frames = hybrid(0.3, 0.5, bound_weight=0.0, **more)
    jax.tree.map(np.testing.assert_array_equal, of_frames, simple(0.3, **more))
    alpha, sigma = (
        np.asarray(f(t), np.float64)[:, None, None] for f in (process.alpha, process.sigma)
    )
    error = jnp.asarray(
        (np.asarray(x_t) - sigma * 0.3 * np.asarray(x_t)) / alpha - np.asarray(x), jnp.float32
    )
    bound = lambda variance: bound_step(process, x, t, error, (variance * jnp.cos(x_t) + 1) / 2)
    # sigma/alpha reaches 157.
    np.testing.assert_allclose(loss - plain, bound(0.5), rtol=1e-3, atol=1e-5)
    # With y = 0.3·x_t of the target v, x̂ is alpha·x_t − sigma·y.
    error_of_v = jnp.float32((alpha - 0.3 * sigma) * np.asarray(x_t) - np.asarray(x))
    expected = bound_step(process, x, t, error_of_v, (jnp.cos(x_t) / 2 + 1) / 2)
    of_v = hybrid(0.3, 0.5, target=v)[0] - simple(0.3, target=v)[0]
    np.testing.assert_allclose(of_v, expected, rtol=1e-3, atol=1e-5)
    coarse = 0.002 * 250 * bound_step(process, x, t, error, (jnp.cos(x_t) / 2 + 1) / 2, 250)
    found, _ = hybrid(0.3, 0.5, bound_weight=0.002, num_steps=250)
    np.testing.assert_allclose(found - plain, coarse, rtol=1e-3, atol=1e-5)
    by_mean, by_variance = jax.jacobian(lambda *a: hybrid(*a)[0].mean(), argnums=(0, 1))(0.3, 0.5)
    np.testing.assert_allclose(
        by_mean, jax.grad(lambda mean: simple(mean)[0].mean())(0.3), rtol=1e-6
    )
    np.testing.assert_allclose(by_variance, jax.grad(lambda a: bound(a).mean())(0.5), rtol=1e-3)
    assert by_variance != 0
    halved = hybrid(0.3, 0.5, weighting=lambda process, target, t: 0.5 * jnp.ones_like(t))[0]
    np.testing.assert_allclose(halved, loss - plain / 2, rtol=1e-5, atol=1e-6)


def test_sums_by_time_put_each_loss_in_its_part_of_the_domain():
    process = RectifiedFlow(domain=(0.2, 1.0))
    t = jnp.array([0.2, 0.35, 0.41, 0.99, 1.0])
    sums, counts = sums_by_time(process, jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), t, 4)
    # The domain's end belongs to the last part.
    np.testing.assert_array_equal(sums, [3, 4, 0, 24])
    np.testing.assert_array_equal(counts, [2, 1, 0, 2])


def test_an_infinite_loss_is_one_of_its_own_part():
    losses, t = jnp.array([1.0, jnp.inf, 2.0]), jnp.array([0.1, 0.5, 0.9])
    sums, _ = sums_by_time(RectifiedFlow(), losses, t, 3)
    np.testing.assert_array_equal(sums, [1, np.inf, 2])


def test_an_output_that_would_broadcast_is_refused():
    gray = lambda x, t: x[..., :1]
    with pytest.raises(ValueError, match=r"returns shape \(2, 4, 1\); .* that of x, \(2, 4, 3\)"):
        run(jnp.zeros((2, 4, 3)), gray)


def test_an_output_of_two_parts_is_refused():
    """As `Module.apply` returns with `mutable`: each part would have a loss of its own."""
    pair = lambda x, t: (x, x)
    with pytest.raises(ValueError, match=r"returns PyTreeDef\(\(\*, \*\)\); .*like x"):
        run(jnp.zeros((2, 4, 3)), pair)


def test_an_output_without_a_variance_is_refused():
    """The prediction would have half the channels of x, and broadcast if x has two."""
    choices = dict(process=VariancePreservingTable(), target=noise, times=uniform)
    for network in (lambda x, t: x, lambda x, t: x[:, :1]):
        with pytest.raises(ValueError, match=r"must return twice the channels of x, \(4, 2\)"):
            hybrid_loss(jax.random.key(0), network, jnp.ones((4, 2)), **choices)


def test_noise_that_would_broadcast_is_refused(unchecked_annotations):
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3\); it needs that of x, \(2, 3\)"):
        run(jnp.zeros((2, 3)), noise=jnp.ones((1, 3)))


def test_bytes_are_refused(unchecked_annotations):
    with pytest.raises(ValueError, match="data are floats; got uint8: convert them"):
        run(jnp.zeros((2, 4, 3), jnp.uint8))


def test_names_and_numbers_are_no_functions(unchecked_annotations):
    parts = dict(process=RectifiedFlow(), target=velocity, times=uniform)
    for wrong in (dict(target="velocity"), dict(times=0.5), dict(weighting=2.0)):
        [(name, value)] = wrong.items()
        with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a function"):
            simple_loss(jax.random.key(0), lambda x, t: x, jnp.ones((2, 3)), **parts | wrong)


def test_float64_of_numpy_is_float32_without_a_warning(recwarn, unchecked_annotations):
    x = np.random.default_rng(0).standard_normal((2, 3))
    choices = dict(process=RectifiedFlow(), target=velocity, times=uniform)
    network = lambda x, t: jnp.zeros_like(x)
    ours, expected = (
        simple_loss(jax.random.key(0), network, each, **choices)[0] for each in (x, jnp.asarray(x))
    )
    np.testing.assert_array_equal(ours, expected)
    assert not recwarn.list
