import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from mixtures import quick_jit

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    ddim,
    dpm_solver_pp_2m,
    edm_heun,
    euler,
    image_to_image,
    inpaint,
    invert,
    repaint,
    sample_keys,
    slerp,
    uniform_grid,
)
from genjax.diffusion.editing import last_steps
from genjax.diffusion.samplers import ddpm, heun, midpoint, rk4

FLOW = RectifiedFlow()
CORRELATION = 0.8
COVARIANCE = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
KNOWN, MASK = 1.5, np.array([True, False])  # the first coordinate is given
MEAN, VARIANCE = (
    CORRELATION * KNOWN,
    1 - CORRELATION**2,
)  # of the second coordinate, given the first


def gaussian_denoiser(process):
    """Make the denoiser that returns E[x | x_t] and E[z | x_t], in the axes of the covariance."""
    spread, axes = np.linalg.eigh(COVARIANCE)

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        along = x_t @ axes / (alpha**2 * spread + sigma**2)
        return Prediction((alpha * spread * along) @ axes.T, (sigma * along) @ axes.T)

    return denoise


def posterior_weight(t):
    """Return the matrix K of E[x | x_t] = K·x_t, for rectified flow."""
    return (1 - t) * COVARIANCE @ np.linalg.inv((1 - t) ** 2 * COVARIANCE + t**2 * np.eye(2))


def keys_of(count):
    return sample_keys(jax.random.key(0), jnp.arange(count))


# Image to image.


@pytest.mark.parametrize(
    "process, sampler, strength, steps",
    [
        (FLOW, euler, 1.0, 10),
        (VariancePreservingCosine(), ddpm, 0.42, 5),
        (VarianceExploding(), euler, 0.01, 1),
    ],
    ids=["flow", "cosine", "exploding"],
)
def test_image_to_image_is_sampling_from_a_noised_image(process, float64, sampler, strength, steps):
    images, keys = jnp.array([[1.0, -0.5], [0.3, 2.0], [0.0, 0.1]]), keys_of(3)
    times = uniform_grid(process, 10)
    denoiser = gaussian_denoiser(process)
    edit = quick_jit(
        lambda images, keys: image_to_image(
            sampler, denoiser, process, images, times, keys, strength=strength
        )
    )
    result = edit(images, keys)
    z = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    t = np.linspace(1, 0, 11)[10 - steps]
    noised = quick_jit(process.corrupt)(images, z, jnp.full(3, t))
    rest = jnp.linspace(1, 0, 11)[10 - steps :]
    sample = lambda noised: sampler(denoiser, process, noised, rest, keys=keys)
    np.testing.assert_allclose(result, quick_jit(sample)(noised), rtol=1e-12)
    own = jnp.array([1, 1, 1])
    np.testing.assert_allclose(edit(images[own], keys[own]), result[own], rtol=1e-12)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
def test_strength_outside_its_range(strength):
    with pytest.raises(ValueError, match="strength, the part"):
        image_to_image(
            euler,
            gaussian_denoiser(FLOW),
            FLOW,
            jnp.ones((1, 2)),
            uniform_grid(FLOW, 4),
            keys_of(1),
            strength=strength,
        )


def test_the_least_strength_takes_a_step():
    assert last_steps(10, 1e-20) == 1  # 10 − 1e-20 is 10 in floats


# Inpainting.


@pytest.mark.parametrize(
    "sampler", [euler, ddim, functools.partial(ddpm, keys=keys_of(3)), repaint]
)
@pytest.mark.parametrize("process", [FLOW, VariancePreservingCosine()], ids=["flow", "cosine"])
def test_the_known_part_is_kept(process, sampler, float64):
    sampler = (
        functools.partial(repaint, jump_length=2, resamplings=3, keys=keys_of(3))
        if sampler is repaint
        else sampler
    )
    images, noise = jnp.full((3, 2), KNOWN), process.prior(keys_of(3), (2,))
    denoiser = inpaint(gaussian_denoiser(process), process, jnp.asarray(MASK), images)
    samples = quick_jit(lambda noise, times: sampler(denoiser, process, noise, times))(
        noise, uniform_grid(process, 6)
    )
    # Euler in t follows the line from the noise to the data only where that line is straight in t.
    if sampler is euler and process is not FLOW:
        assert np.abs(samples[:, 0] - KNOWN).max() < 0.5
    else:
        np.testing.assert_allclose(samples[:, 0], KNOWN, rtol=1e-14)
    assert np.abs(samples[:, 1] - KNOWN).min() > 0.01


@pytest.mark.parametrize(
    "sampler, share",
    [(heun, 1 / 2), (rk4, 1 / 6), (midpoint, 0), (edm_heun, 0), (dpm_solver_pp_2m, 0)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_samplers_that_evaluate_at_the_end_miss_the_data(sampler, share, float64):
    """They miss it by their last weight times h·z, because at sigma = 0 the known noise is lost."""
    noise, steps = FLOW.prior(keys_of(3), (2,)), 10
    denoiser = inpaint(gaussian_denoiser(FLOW), FLOW, jnp.asarray(MASK), jnp.full((3, 2), KNOWN))
    fill = quick_jit(lambda noise, times: sampler(denoiser, FLOW, noise, times))
    missed = fill(noise, uniform_grid(FLOW, steps))[:, 0] - KNOWN
    np.testing.assert_allclose(
        missed, share / steps * np.asarray(noise)[:, 0], rtol=1e-10, atol=1e-14
    )


def test_replaced_known_pixels_have_constant_velocity(float64):
    """For rectified flow the known part is x_t = (1 − t)·data + t·noise at all times."""
    noise, times = FLOW.prior(keys_of(3), (2,)), uniform_grid(FLOW, 4)
    denoiser = inpaint(gaussian_denoiser(FLOW), FLOW, jnp.asarray(MASK), jnp.full((3, 2), KNOWN))
    states = euler(denoiser, FLOW, noise, times, trajectory=True)[..., 0]
    t = np.asarray(times)[:, None]
    np.testing.assert_allclose(states, (1 - t) * KNOWN + t * np.asarray(noise)[:, 0], rtol=1e-13)


def test_bias_of_replacement(float64):
    """The flow is linear, dx/dt = A(t)·x + b(t), so another integrator gives its moments."""

    def velocity(t, x):
        clean = np.array([KNOWN, (posterior_weight(t) @ x)[1]])
        return (x - (1 - t) * clean) / t - clean

    starts = np.vstack([np.zeros(2), np.eye(2)])
    ends = [
        scipy.integrate.solve_ivp(velocity, (1, 1e-6), x, rtol=1e-7, atol=1e-9).y[1, -1]
        for x in starts
    ]
    mean, spread = ends[0], np.linalg.norm(np.array(ends[1:]) - ends[0]) ** 2
    denoiser = inpaint(gaussian_denoiser(FLOW), FLOW, jnp.asarray(MASK), jnp.full((3, 2), KNOWN))
    mine = np.asarray(ddim(denoiser, FLOW, jnp.asarray(starts), uniform_grid(FLOW, 2000)))[:, 1]
    # ddim has first order and takes 2000 steps here.
    np.testing.assert_allclose(mine[0], mean, rtol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(mine[1:] - mine[0]) ** 2, spread, rtol=4e-3)
    # The moments go from the prior's 0 and 1 towards the conditional's 1.2 and 0.36, but not all
    # the way.
    np.testing.assert_allclose([mean, spread], [0.520, 0.672], atol=1e-3)


def moments(num_steps, jump_length, resamplings):
    """Return the exact mean and variance of RePaint's result.

    Each step is linear with Gaussian noise.
    """
    times = np.linspace(1, 0, num_steps + 1)
    mean, covariance = np.zeros(2), np.eye(2)
    jumps = {left: resamplings - 1 for left in range(0, num_steps - jump_length, jump_length)}
    left = num_steps
    while left > 0:
        t, s = times[num_steps - left], times[num_steps - left + 1]
        weight = posterior_weight(t) * ~MASK[:, None]
        drawn = (1 - ((1 - t) / (1 - s)) ** 2 * s**2 / t**2) * s**2
        of_noise = np.sqrt(s**2 - drawn) / t
        matrix = (1 - s) * weight + of_noise * (np.eye(2) - (1 - t) * weight)
        mean = matrix @ mean + (1 - s - of_noise * (1 - t)) * np.where(MASK, KNOWN, 0)
        covariance = matrix @ covariance @ matrix.T + drawn * np.eye(2)
        left -= 1
        if jumps.get(left, 0):
            jumps[left] -= 1
            left += jump_length
            later = times[num_steps - left]
            ratio = (1 - later) / (1 - s)
            mean = ratio * mean
            covariance = ratio**2 * covariance + (later**2 - ratio**2 * s**2) * np.eye(2)
    return mean[1], covariance[1, 1]


def test_repaint_reaches_the_conditional(float64):
    """Resampling removes the bias of the mean, and more steps remove that of the variance.

    The variance is biased because DDPM's steps have the least noise.
    """
    bias = lambda *options: np.array(moments(*options)) / (MEAN, VARIANCE) - 1
    # steps, jump length, resamplings: relative bias of the mean and of the variance
    np.testing.assert_allclose(bias(50, 5, 1), [-0.391, 0.381], atol=1e-3)  # replacement alone
    np.testing.assert_allclose(bias(50, 5, 10), [-0.050, -0.146], atol=1e-3)
    np.testing.assert_allclose(bias(50, 5, 20), [-0.028, -0.198], atol=1e-3)
    np.testing.assert_allclose(bias(200, 5, 20), [-0.020, -0.067], atol=1e-3)
    np.testing.assert_allclose(bias(400, 10, 20), 0, atol=0.03)


@pytest.mark.parametrize("jump_length, resamplings", [(3, 2), (1, 3)])
def test_repaint_has_these_moments(jump_length, resamplings):
    count = 2000
    noise = FLOW.prior(keys_of(count), (2,))
    denoiser = inpaint(
        gaussian_denoiser(FLOW), FLOW, jnp.asarray(MASK), jnp.full((count, 2), KNOWN)
    )
    times = uniform_grid(FLOW, 20)
    options = {"jump_length": jump_length, "resamplings": resamplings}
    fill = lambda noise, keys: repaint(denoiser, FLOW, noise, times, keys=keys, **options)
    samples = np.asarray(quick_jit(fill)(noise, keys_of(count)))
    np.testing.assert_array_equal(samples[:, 0], np.float32(KNOWN))
    with jax.enable_x64(True):
        mean, variance = moments(20, jump_length, resamplings)
    # The limits are four deviations of the estimates, 0.05 for the mean. One resampling fewer
    # changes the mean by more.
    assert abs(samples[:, 1].mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(samples[:, 1].var() - variance) < 4 * variance * np.sqrt(2 / count)


def test_repaint_without_resampling_is_ddpm():
    noise, times = FLOW.prior(keys_of(4), (2,)), uniform_grid(FLOW, 6)
    arguments = gaussian_denoiser(FLOW), FLOW, noise, times
    table, expected = repaint.table(FLOW, times, 2, 1), ddpm.table(FLOW, times)
    for column in ("times", "clean", "noise", "fresh"):
        np.testing.assert_array_equal(getattr(table, column), getattr(expected, column))
    np.testing.assert_array_equal(table.churn, 0)
    np.testing.assert_array_equal(table.churn_state, 1)
    once = repaint(*arguments, keys=keys_of(4), resamplings=1)
    np.testing.assert_allclose(once, ddpm(*arguments, keys=keys_of(4)), rtol=1e-6)
    options = dict(keys=keys_of(4), jump_length=2, resamplings=3, trajectory=True)
    states = jax.eval_shape(
        functools.partial(repaint, gaussian_denoiser(FLOW), FLOW, **options), noise, times
    )
    # It goes back at two places, twice each, by two steps.
    assert len(states) == 1 + 6 + 2 * 2 * 2


def test_going_back_keeps_the_marginals(process, float64):
    """For every row, the state is alpha·x + sigma·z at the row's time before the evaluation.

    After the row it is that of the grid's next time.
    """
    times = uniform_grid(process, 6)
    table = repaint.table(process, times, 2, 3)
    levels = np.stack([process.alpha(times), process.sigma(times)], 1)
    alpha, sigma = levels[0]
    for i, t in enumerate(table.times):
        alpha, sigma = (
            table.churn_state[i] * alpha,
            np.hypot(table.churn_state[i] * sigma, table.churn[i]),
        )
        place = np.flatnonzero(times == t)[0]
        np.testing.assert_allclose([alpha, sigma], levels[place], rtol=1e-12, atol=1e-15)
        alpha, sigma = table.clean[i, 0], np.hypot(table.noise[i, 0], table.fresh[i])
        np.testing.assert_allclose([alpha, sigma], levels[place + 1], rtol=1e-12, atol=1e-15)


def test_repaint_checks_its_numbers():
    for options in ({"jump_length": 0}, {"resamplings": 0}):
        with pytest.raises(ValueError, match="are positive"):
            repaint.table(FLOW, uniform_grid(FLOW, 6), **options)
    # The paper's numbers: it takes 2 of 3 times 10 steps 10 times.
    default = jax.eval_shape(functools.partial(repaint.table, FLOW), uniform_grid(FLOW, 30))
    assert default.times.shape == (2 * 10 * 10 + 10,)


def test_repaint_holds_the_network_once_and_no_image_or_mask():
    @jax.jit
    def fill(noise, images, known, times):
        tanh = lambda x, t: Prediction(jnp.tanh(x), x)
        denoiser = inpaint(tanh, FLOW, known, images)
        return repaint(denoiser, FLOW, noise, times, keys=keys_of(3), jump_length=2, resamplings=4)

    arguments = jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.asarray(MASK), uniform_grid(FLOW, 8)
    fill(*arguments)
    filled = fill(arguments[0], 3 * arguments[1], ~arguments[2], uniform_grid(FLOW, 8, shift=2.0))
    np.testing.assert_allclose(filled[:, 1], 3)
    assert fill._cache_size() == 1
    assert fill.lower(*arguments).compile().as_text().count(" tanh(") == 1


# Interpolating noises.


def test_slerp_keeps_the_norm_and_divides_the_angle(float64):
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 4, 3))
    b *= np.linalg.norm(a, axis=(1, 2), keepdims=True) / np.linalg.norm(
        b, axis=(1, 2), keepdims=True
    )
    unit = lambda x: x / np.linalg.norm(x, axis=(1, 2), keepdims=True)
    angle = lambda x, y: 2 * np.arcsin(np.linalg.norm(unit(x) - unit(y), axis=(1, 2)) / 2)
    weight = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    middle = np.asarray(slerp(jnp.asarray(a), jnp.asarray(b), jnp.asarray(weight)))
    np.testing.assert_allclose(
        np.linalg.norm(middle, axis=(1, 2)), np.linalg.norm(a, axis=(1, 2)), rtol=1e-13
    )
    np.testing.assert_allclose(angle(a, middle), weight * angle(a, b), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(middle[[0, 4]], [a[0], b[4]], rtol=1e-12)


def test_slerp_of_parallel_noises_is_straight(float64):
    a = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)))
    b = a * jnp.array([1.0, 2.0, -1.0, 0.0])[:, None]
    expected = 0.7 * a + 0.3 * b
    np.testing.assert_allclose(slerp(a, b, 0.3), expected, rtol=1e-13, atol=1e-15)
    near = a * (1 + 1e-9 * jnp.arange(6))
    np.testing.assert_allclose(slerp(a, near, 0.3), 0.7 * a + 0.3 * near, rtol=1e-12)


# Inversion.


# The data's deviation along the axes of these images.
DEVIATION = np.sqrt([[1 - CORRELATION], [1 + CORRELATION]])
AXES = np.array([[1.0, -1.0], [2.0, 2.0]])


def round_trip(process, sampler, num_steps):
    """Return the largest errors of the noise and of the image that comes back from it.

    A flow keeps x_t divided by its deviation. The denoiser knows the times of the domain only.
    """
    # The shift puts EDM's steps where its sigma is of the data's size.
    times = uniform_grid(process, num_steps, shift=0.01 if isinstance(process, EDM) else 1.0)
    finite = times[:-1] if isinstance(process, EDM) else times

    def denoiser(x_t, t):
        known = (t >= process.domain[0])[:, None]
        return gaussian_denoiser(process)(jnp.where(known, x_t, jnp.nan), t)

    @quick_jit
    def there_and_back(images, times, finite):
        noise = invert(sampler, denoiser, process, images, times)
        return noise, sampler(denoiser, process, noise, finite)

    noise, back = there_and_back(jnp.asarray(AXES), times, finite)
    first, last = (
        np.hypot(process.alpha(t) * DEVIATION, process.sigma(t)) for t in finite[jnp.array([-1, 0])]
    )
    return np.array([np.abs(noise / last - AXES / first).max(), np.abs(back - AXES).max()])


@pytest.mark.parametrize(
    "process, sampler, order, steps",
    [
        (FLOW, rk4, 4, 60),
        (VariancePreservingCosine(), heun, 2, 40),
        (EDM(), ddim, 1, 100),
        (EDM(), heun, 2, 40),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_inversion_has_the_order_of_the_sampler(process, sampler, order, steps, float64):
    """The round trip has the order too, or one more if the order is even.

    Errors that are the same in both directions cancel.
    """
    steps = 4 * steps if isinstance(process, EDM) else steps
    slope = np.log2(round_trip(process, sampler, steps) / round_trip(process, sampler, 2 * steps))
    np.testing.assert_allclose(slope, [order, order + (order % 2 == 0)], atol=0.15)


@pytest.mark.parametrize("mask", [np.array([255, 0], np.uint8), np.array([0.3, 0.0])])
def test_a_mask_of_numbers_is_refused(mask, unchecked_annotations):
    """In other programs white is what to repaint."""
    denoiser = lambda x, t: Prediction(x, x)
    with pytest.raises(ValueError, match="True where the data are given; got .*: compare it"):
        inpaint(denoiser, FLOW, mask, jnp.ones((3, 2)))
