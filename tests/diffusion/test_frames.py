"""One time per frame: grids `[times frames]`, and losses with times per frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import (
    BY_COLUMNS,
    DISTINCT,
    SAMPLERS,
    leaf_by_leaf,
    mixture_denoiser,
    quantiles_of,
    quick_jit,
    states_of,
)

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    VariancePreservingLinear,
    check_target,
    clean,
    ddim,
    guide,
    image_to_image,
    interval,
    predict,
    repaint,
    sample_keys,
    samplers,
    simple_loss,
    staggered_grid,
    sums_by_time,
    total_loss,
    uniform,
    uniform_grid,
    v,
    velocity,
)
from genjax.diffusion.optimal import gaussian_least_loss

FLOW, COSINE = RectifiedFlow(), VariancePreservingCosine()
LINEAR = VariancePreservingLinear(domain=(1e-3, 1.0))  # finite log-SNR everywhere
# Levels of five frames: with pauses, late, early with a pause, always clean, always noise.
LEVELS = np.array(
    [
        [1.0, 1.0, 1.0, 0.0, 1.0],
        [0.9, 1.0, 0.8, 0.0, 1.0],
        [0.9, 1.0, 0.6, 0.0, 1.0],
        [0.5, 0.8, 0.6, 0.0, 1.0],
        [0.5, 0.6, 0.3, 0.0, 1.0],
        [0.2, 0.3, 0.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
)
# Options with which the stochastic samplers draw no noise, or noise that does not matter.
OPTIONS = {
    "dpm2_ancestral": {"eta": 0.0},
    "edm_stochastic": {"s_churn": 0.0},
    "euler_ancestral": {"eta": 0.0},
    "euler_maruyama": {"diffusion": lambda process, t: 0 * t},
    "unipc": {"order": 3, "lower_order_final": True},
}


def draws_noise(sampler, **options):
    table = jax.eval_shape(lambda times: sampler.table(FLOW, times, **options), jnp.ones(3))
    return not (table.fresh is None and table.churn is None)


# dpm_solver_pp_sde allows only one time for all frames.
FRAMEWISE = {name: s for name, s in DISTINCT.items() if name != "dpm_solver_pp_sde"}
ALONE = {name: s for name, s in FRAMEWISE.items() if name in OPTIONS or not draws_noise(s)}
NOISY = {name: s for name, s in FRAMEWISE.items() if draws_noise(s)}


def levels_of(process, levels):
    """Return a grid between the ends of the process, clean end included.

    EDM's grid is spaced by powers, because its noise is large.
    """
    start, end = process.clean_end, process.domain[1]
    return jnp.asarray(start + (end - start) * (levels**3 if process == EDM() else levels))


def per_frame(process):
    """Make the exact denoiser of frames that are independent mixtures.

    Its times are `[batch]` or `[batch frames]`.
    """

    def denoise(x_t, t):
        t = jnp.broadcast_to(t.reshape(len(x_t), -1), x_t.shape)
        answer = mixture_denoiser(process)(x_t.reshape(-1), t.reshape(-1))
        return jax.tree.map(lambda a: a.reshape(x_t.shape), answer)

    return denoise


@pytest.fixture
def starts(float64):
    return jnp.asarray(quantiles_of(0.0, 1.0))[::8]


@pytest.mark.parametrize("name", ALONE)
def test_each_frame_equals_a_run_of_that_frame_alone(name, starts):
    """A frame's sample equals that of a run with this frame alone.

    The samplers include some with several values in memory, with several evaluations per step, and
    with a different last step. A tree has a leaf for each kind of process, and the frames of every
    leaf wait at different steps. One sampler for each set of columns has a third leaf, whose
    log-SNR is finite everywhere.
    """
    sampler, options = ALONE[name], OPTIONS.get(name, {})
    draws = draws_noise(sampler, **options)
    processes = {"edm": EDM(), "flow": FLOW}
    if name in BY_COLUMNS:
        processes["linear"] = LINEAR
    grids = {name: levels_of(process, LEVELS) for name, process in processes.items()}
    first = {
        name: (p.alpha(grids[name][0]), p.sigma(grids[name][0])) for name, p in processes.items()
    }
    noise = {name: alpha + sigma * starts[:, None] for name, (alpha, sigma) in first.items()}
    keys = sample_keys(jax.random.key(0), jnp.arange(len(starts)))
    denoiser = leaf_by_leaf({name: per_frame(process) for name, process in processes.items()})
    sample = quick_jit(
        lambda noise, grids: sampler(denoiser, processes, noise, grids, keys=keys, **options)
    )
    found = sample(noise, grids)
    # All frames that do not always wait have equally many times of their own.
    table = quick_jit(
        lambda grids: {
            name: sampler.table(process, grids[name], **options)
            for name, process in processes.items()
        }
    )
    for frame, moves in enumerate((np.diff(LEVELS, axis=0) != 0).T):
        own = {name: grid[np.append(True, moves), frame] for name, grid in grids.items()}
        tables = jax.device_get(table(own)) if any(moves) else None
        for leaf, process in processes.items():
            expected = noise[leaf][:, frame]
            if any(moves):
                expected = states_of(process, expected, tables[leaf], keys if draws else None)[-1]
            np.testing.assert_allclose(found[leaf][:, frame], expected, rtol=1e-11, atol=1e-11)


def test_frames_at_equal_times_are_those_of_one_time(float64):
    """Up to rounding, learned variance included; a grid for all frames broadcasts."""
    noise = jax.random.normal(jax.random.key(1), (2, 3, 2))
    keys = sample_keys(jax.random.key(2), jnp.arange(2))
    answer = lambda x_t, t: Prediction(jnp.tanh(x_t), x_t, jnp.full_like(x_t, 0.3))
    sample = lambda times: samplers.ddpm(answer, COSINE, noise, times, keys=keys, trajectory=True)

    @quick_jit
    def samples(times):
        return sample(times), sample(jnp.tile(times[:, None], (1, 3))), sample(times[:, None])

    expected, *found = samples(uniform_grid(COSINE, 2))
    for states in found:
        np.testing.assert_allclose(states, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", NOISY)
def test_noise_of_a_frame_follows_its_times(name):
    """Frames that never wait equal a run in which all have their times, and a run with one time."""
    noise = jax.random.normal(jax.random.key(1), (4, 3, 2))
    keys = sample_keys(jax.random.key(2), jnp.arange(4))
    grid = jnp.asarray([[0.9, 1.0, 0.6], [0.5, 0.8, 0.3], [0.4, 0.5, 0.2], [0.1, 0.0, 0.1]])
    sample = quick_jit(
        lambda times: NOISY[name](per_frame_gaussian(COSINE), COSINE, noise, times, keys=keys)
    )
    found = sample(grid)
    for frame in range(3):
        expected = sample(jnp.tile(grid[:, frame, None], (1, 3)))
        np.testing.assert_array_equal(found[:, frame], expected[:, frame])
    np.testing.assert_allclose(expected, sample(grid[:, frame]), rtol=2e-5, atol=2e-6)


def per_frame_gaussian(process, mean=0.4, deviation=0.6):
    """Make the exact denoiser of independent N(mean, deviation²)."""

    def denoise(x_t, t):
        t = t.reshape(len(x_t), -1, 1)
        alpha, sigma = process.alpha(t), process.sigma(t)
        residual = x_t - alpha * mean
        variance = alpha**2 * deviation**2 + sigma**2
        return Prediction(
            mean + alpha * deviation**2 / variance * residual, sigma / variance * residual
        )

    return denoise


@pytest.mark.parametrize("name", [name for name in BY_COLUMNS if name in FRAMEWISE])
def test_a_waiting_frame_ignores_its_prediction(name):
    """At every evaluation the network sees the waiting frame unchanged, at its own time.

    The other frames are not affected.
    """
    process, sampler = EDM(), SAMPLERS[name]
    noise = process.sigma(jnp.asarray(80.0)) * jax.random.normal(jax.random.key(1), (4, 3, 2))
    noise = noise.at[:, 0].set(0.25)  # a clean frame
    keys = sample_keys(jax.random.key(2), jnp.arange(4))
    grid = jnp.asarray([[0.0, 80.0, 80.0], [0.0, 10.0, 80.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    seen = []

    def denoiser(x_t, t):
        jax.debug.callback(lambda x_t, t: seen.append((x_t[:, 0], t[:, 0])), x_t, t)
        prediction = per_frame_gaussian(process)(x_t, t)
        return jax.tree.map(lambda a: a.at[:, 0].set(jnp.nan), prediction)

    sample = lambda noise, grid: sampler(denoiser, process, noise, grid, keys=keys, trajectory=True)
    states = quick_jit(sample)(noise, grid)
    jax.effects_barrier()
    assert np.isfinite(states).all() and states.shape[0] == 4
    np.testing.assert_array_equal(states[:, :, 0], 0.25)
    np.testing.assert_array_equal(states[1, :, 2], noise[:, 2])  # it waits for one step
    np.testing.assert_array_equal(np.stack([x for x, _ in seen]), 0.25)
    # The time nearest to the clean end that the network knows.
    np.testing.assert_array_equal(np.stack([t for _, t in seen]), np.float32(0.002))


def test_moments_of_stochastic_frames():
    """For data N(0, 1) a learned variance of 1 makes steps of any length exact, with waits too."""
    grid = staggered_grid(jnp.linspace(1.0, 0.1, 5), (0, 2, -4))
    noise = jax.random.normal(jax.random.key(0), (20_000, 3, 1))
    keys = sample_keys(jax.random.key(1), jnp.arange(20_000))

    def denoiser(x_t, t):
        return per_frame_gaussian(COSINE, 0.0, 1.0)(x_t, t)._replace(fraction=jnp.ones_like(x_t))

    sample = lambda grid: samplers.ddpm(denoiser, COSINE, noise, grid, keys=keys)
    samples = np.asarray(quick_jit(sample)(grid))[..., 0]
    np.testing.assert_array_equal(samples[:, 2], noise[:, 2, 0])
    np.testing.assert_allclose(samples.mean(0), 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(samples.T), np.eye(3), atol=4 * np.sqrt(2 / 20_000))


def test_staggered_grid():
    """The grid equals the one written here. A frame with a delay of −steps is always clean."""
    expected = [
        [1.0, 1.0, 1.0, 0.0],
        [0.5, 1.0, 1.0, 0.0],
        [0.0, 0.5, 1.0, 0.0],
        [0.0, 0.0, 0.5, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    np.testing.assert_array_equal(staggered_grid(uniform_grid(FLOW, 2), (0, 1, 2, -2)), expected)


def test_grids_of_frames_are_arguments():
    """A grid with other waits runs the same program, which holds the network once."""
    calls = []

    def denoiser(x_t, t):
        calls.append(t.shape)
        return Prediction(jnp.tanh(x_t), x_t)

    sample = jax.jit(lambda grid: samplers.unipc(denoiser, FLOW, jnp.ones((2, 5, 3)), grid))
    first, second = sample(jnp.asarray(LEVELS)), sample(jnp.asarray(LEVELS[:, ::-1]))
    assert sample._cache_size() == 1 and calls == [(2, 5)]
    np.testing.assert_array_equal(first, second[:, ::-1])


def test_gradients_are_finite_beside_a_clean_frame():
    """Linear rates have an infinite velocity at the clean end, which is a coefficient of Euler."""
    grid = staggered_grid(uniform_grid(FLOW, 3), (-3, 0, 1))
    for sampler, process in ((samplers.euler, VariancePreservingLinear()), (samplers.unipc, FLOW)):

        def total(scale, sampler=sampler, process=process):
            denoiser = predict(lambda x, t: scale * x * jnp.cos(t)[..., None], process, v)
            return jnp.sum(sampler(denoiser, process, jnp.ones((2, 3, 1)), grid) ** 2)

        total_and_slope = quick_jit(jax.value_and_grad(total))
        difference = total_and_slope(0.501)[0] - total_and_slope(0.499)[0]
        np.testing.assert_allclose(total_and_slope(0.5)[1], difference / 0.002, rtol=1e-2)


# One sampler for each way to make a table; `unipc` makes its own as `sa_solver`. All others were
# compared once.
WAYS = "ddpm dpm2_ancestral edm_heun euler_maruyama predictor_corrector sa_solver".split()


@pytest.mark.parametrize("name", WAYS)
def test_gradient_by_the_times_of_frames(name, starts):
    """A waiting frame has one time several times, which move together in the difference."""
    keys = sample_keys(jax.random.key(0), jnp.arange(len(starts)))
    options = {"order": 3} if name == "sa_solver" else {}
    noise = jnp.tile(starts[:, None], (1, 5))

    def total(grid):
        return jnp.sum(
            jnp.sin(FRAMEWISE[name](per_frame(FLOW), FLOW, noise, grid, keys=keys, **options))
        )

    total_and_slope = quick_jit(jax.value_and_grad(total))
    waits_always = np.ptp(LEVELS, axis=0) == 0
    for levels, ends in ((LEVELS, (0, 1)), (0.04 + 0.89 * LEVELS, ())):
        slope = np.asarray(total_and_slope(jnp.asarray(levels))[1])
        assert np.isfinite(slope).all() and (slope[:, waits_always] == 0).all()
        # Every time of every frame moves by a share of its own.
        share, direction = np.random.default_rng(0).uniform(0.5, 1, 7), np.zeros_like(levels)
        for frame in np.flatnonzero(~waits_always):
            times, place = np.unique(levels[:, frame], return_inverse=True)
            direction[:, frame] = (times * ~np.isin(times, ends) * share[: len(times)])[place]
        # The difference errs by step² and by 1e-16/step.
        step = 3e-6
        above, below = (float(total_and_slope(levels + s * direction)[0]) for s in (step, -step))
        difference = (above - below) / (2 * step)
        np.testing.assert_allclose(np.sum(slope * direction), difference, rtol=1e-6, atol=1e-8)


def test_start_from_data_at_the_times_of_the_grid():
    """Given frames come out bit for bit. The others start at alpha·x + sigma·z with their own z."""
    images = jax.random.normal(jax.random.key(3), (4, 3, 2))
    keys = sample_keys(jax.random.key(0), jnp.arange(4))
    grid = jnp.asarray([[0.0, 0.5, 1.0], [0.0, 0.2, 0.4], [0.0, 0.0, 0.0]])
    options = dict(strength=1.0, trajectory=True)

    @quick_jit
    def states_and_noise(images, grid):
        states = image_to_image(ddim, per_frame_gaussian(FLOW), FLOW, images, grid, keys, **options)
        z = jax.vmap(lambda key: jax.random.normal(key, (3, 2)))(keys)
        return states, z, FLOW.prior(keys, (3, 2), grid[0])

    states, z, prior = map(np.asarray, states_and_noise(images, grid))
    images, grid = map(np.asarray, (images, grid))
    np.testing.assert_array_equal(states[:, :, 0], np.broadcast_to(images[:, 0], (3, 4, 2)))
    np.testing.assert_allclose(states[0, :, 1], 0.5 * images[:, 1] + 0.5 * z[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(states[0, :, 2], z[:, 2])
    np.testing.assert_array_equal(prior, grid[0][:, None] * z)


@pytest.mark.parametrize(
    "grid, message",
    [
        (
            jnp.ones((3, 2)),
            r"\[steps \+ 1 frames …\] for samples of shape \(3, 2\), .*; got shape \(3, 2\)",
        ),
        (jnp.ones((3, 3, 2, 1)), r"got shape \(3, 3, 2, 1\)"),
        (jnp.full((3, 3), 2.0), "runs from 2 to 2"),
    ],
    ids=["frames", "axes", "outside"],
)
def test_grids_that_do_not_fit(grid, message):
    with pytest.raises(ValueError, match=message):
        ddim(per_frame_gaussian(FLOW), FLOW, jnp.ones((2, 3, 2)), grid)


def test_samplers_that_walk_their_grid_another_way():
    """They say so before anything is computed."""
    keys = sample_keys(jax.random.key(0), jnp.arange(2))
    grid = jnp.asarray(np.tile(np.linspace(1, 0, 5, dtype=np.float32)[:, None], (1, 3)))
    backwards = jnp.asarray(np.asarray(grid)[::-1])

    def sample(sampler, grid=grid, **options):
        denoiser = per_frame_gaussian(FLOW)
        jax.eval_shape(
            lambda noise: sampler(denoiser, FLOW, noise, grid, keys=keys, **options),
            jax.ShapeDtypeStruct((2, 3, 2), jnp.float32),
        )

    with pytest.raises(ValueError, match="repaint goes back and forth in time"):
        sample(repaint, jump_length=2)
    with pytest.raises(
        ValueError, match="dpm_solver_pp_sde draws noise by one time for all frames"
    ):
        sample(samplers.dpm_solver_pp_sde)
    with pytest.raises(ValueError, match="restart goes back and forth in time"):
        sample(samplers.restart, first=1, last=2)
    with pytest.raises(ValueError, match="ddpm draws noise"):
        sample(samplers.ddpm, backwards)


# Losses, denoisers and guidance.


def test_loss_of_each_frame_against_numpy():
    """The noise is recovered from the network's input, and the squared errors are written out."""
    x, seen = jax.random.normal(jax.random.key(1), (64, 5, 3, 2)), []
    apply = lambda x_t, t: seen.append((x_t, t)) or jnp.tanh(x_t)
    options = dict(process=FLOW, target=velocity, times=uniform, time_axes=2)
    weigh = lambda process, target, t: 1 + t

    @quick_jit
    def run(key, x):
        losses, t = simple_loss(key, apply, x, weighting=weigh, **options)
        return losses, t, *seen[0], total_loss(losses), *sums_by_time(FLOW, losses, t, 4)

    found = map(np.asarray, run(jax.random.key(0), x))
    losses, t, x_t, times, total, sums, counts = found
    x_t, times = np.float64(x_t), np.float64(times)
    assert losses.shape == t.shape == (64, 5)
    np.testing.assert_array_equal(times, t)
    tail = times[..., None, None]
    z = (x_t - (1 - tail) * np.asarray(x, np.float64)) / tail
    expected = (1 + times) * np.mean((np.tanh(x_t) - (z - x)) ** 2, axis=(2, 3))
    far = times > 0.1
    np.testing.assert_allclose(losses[far], expected[far], rtol=1e-4)
    assert abs(np.corrcoef(times.T) - np.eye(5)).max() < 0.5  # each frame draws its own time
    np.testing.assert_allclose(total, np.mean(losses, axis=1), rtol=1e-6)
    place = np.minimum(times * 4, 3).astype(int)
    np.testing.assert_allclose(sums, [losses[place == i].sum() for i in range(4)], rtol=1e-5)
    np.testing.assert_array_equal(counts, np.bincount(place.ravel()))


def test_loss_of_frames_at_equal_times_is_that_of_one_time():
    """This holds averaged over frames. The number of time axes changes nothing else."""
    x = jax.random.normal(jax.random.key(1), (16, 4, 3))
    network = lambda x_t, t: jnp.tanh(x_t) * jnp.cos(t).reshape(16, -1, 1)
    equal = lambda key, shape: jnp.broadcast_to(jax.random.uniform(key, (16, 1)), shape)
    drawn = lambda key, shape: jax.random.uniform(key, shape)
    options = dict(process=COSINE, target=velocity, times=uniform, direction_weight=0.3)

    @quick_jit
    def both(key, x):
        of_frames = dict(variates=equal, time_axes=2, **options)
        return (
            simple_loss(key, network, x, variates=drawn, **options),
            simple_loss(key, network, x, **of_frames),
        )

    (losses, t), (by_frame, times) = both(jax.random.key(0), x)
    np.testing.assert_array_equal(times, np.broadcast_to(np.asarray(t)[:, None], (16, 4)))
    np.testing.assert_allclose(total_loss(by_frame), losses, rtol=1e-6)


def test_the_best_loss_of_gaussian_frames():
    """It is E Var[y | x_t] in closed form, at the time of each frame."""
    deviation, x = 0.6, 0.4 + 0.6 * jax.random.normal(jax.random.key(1), (500, 4, 30))

    def network(x_t, t):
        prediction = per_frame_gaussian(FLOW, 0.4, deviation)(x_t, t)
        return prediction.velocity(FLOW, t)

    @quick_jit
    def ratios(key, x):
        options = dict(process=FLOW, target=velocity, times=uniform, time_axes=2)
        losses, t = simple_loss(key, network, x, **options)
        return losses / gaussian_least_loss(FLOW, velocity, t, deviation)

    ratio = ratios(jax.random.key(0), x)
    np.testing.assert_allclose(ratio.mean(0), 1, atol=4 * np.sqrt(2 / 30 / 500))


def test_guidance_at_the_time_of_each_frame():
    """The interval applies to the frames inside it, and every frame equals that frame alone."""
    x_t = jax.random.normal(jax.random.key(1), (2, 3, 2))
    t, labels = jnp.asarray([[0.1, 0.5, 0.9], [0.5, 0.6, 0.95]]), jnp.asarray([[2.0], [3.0]])

    def denoiser(x_t, t, label):
        clean = jnp.sin(x_t + (t * label)[..., None])
        return Prediction(clean, clean**2)

    guided, c, u = quick_jit(
        lambda *inputs: (
            guide(denoiser, labels, jnp.zeros(1), interval(3.0, 0.3, 0.8))(*inputs),
            denoiser(*inputs, labels),
            denoiser(*inputs, 0 * labels),
        )
    )(x_t, t)
    inside = np.asarray((0.3 < t) & (t <= 0.8))[..., None]
    for found, with_label, without in zip(guided[:2], c[:2], u[:2], strict=True):
        expected = np.where(inside, without + 3 * (with_label - without), with_label)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_targets_are_checked_at_all_times():
    with pytest.raises(ValueError, match="clean is singular at t = 0"):
        check_target(FLOW, clean, jnp.asarray([[1.0, 0.0], [0.5, 0.0]]))
    check_target(FLOW, velocity, jnp.asarray([[1.0, 0.0], [0.5, 0.0]]))
