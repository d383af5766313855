"""Two modalities that are jointly Gaussian, with the exact denoiser: all laws are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import quick_jit

from genjax import diffusion
from genjax.diffusion import EDM, Prediction, RectifiedFlow, VariancePreservingCosine
from genjax.diffusion.joint import known_rows
from genjax.diffusion.targets import clean, score, velocity
from genjax.diffusion.times import independent, stratified, uniform
from genjax.diffusion.weightings import bounded_velocity, min_snr

PROCESS = {"sound": VariancePreservingCosine(), "video": RectifiedFlow()}
NAMES = tuple(PROCESS)
DEVIATIONS, CORRELATION = np.array([0.5, 2.0]), 0.8
COVARIANCE = np.outer(DEVIATIONS, DEVIATIONS) * np.array([[1, CORRELATION], [CORRELATION, 1]])
MEANS = np.array([[0.0, 0.0], [1.0, -3.0]])  # of two conditions; the first is the null condition
STEPS = 256


def denoiser(x_t, t, condition):
    """Return E[x | x_t] and E[z | x_t] of both, given noisy values of both.

    x_t = A·x + S·z with diagonal A and S. So x̂ = m + C·A·V⁻¹·(x_t − A·m) and ẑ = S·V⁻¹·(x_t − A·m),
    where V = A·C·A + S² is the covariance of x_t.
    """
    means = jnp.asarray(MEANS, jnp.float32)[condition]
    diagonal = lambda *each: jax.vmap(jnp.diag)(jnp.stack(each, -1))
    a = diagonal(*(PROCESS[name].alpha(t[name]) for name in NAMES))
    s = diagonal(*(PROCESS[name].sigma(t[name]) for name in NAMES))
    covariance = jnp.asarray(COVARIANCE, jnp.float32)
    residual = jnp.stack([x_t[name] for name in NAMES], -1) - jnp.einsum("bij,bj->bi", a, means)
    whitened = jnp.linalg.solve(a @ covariance @ a + s @ s, residual[..., None])
    clean, noise = means + (covariance @ a @ whitened)[..., 0], (s @ whitened)[..., 0]
    split = lambda both: {name: both[:, i] for i, name in enumerate(NAMES)}
    return Prediction(split(clean), split(noise))


@functools.cache
def program():
    """Return the compiled program that samples, from noise by name, condition and scales."""

    def sample(noise, grid, condition, guidance_scale, modality_scale, absent):
        guided = diffusion.guide_jointly(
            denoiser, PROCESS, condition, 0, guidance_scale, modality_scale, absent
        )
        return diffusion.heun(guided, PROCESS, noise, grid)

    return quick_jit(sample)


def sample(noise, given=(), first=(), condition=1, guidance_scale=1.0, modality_scale=1.0):
    times = {name: diffusion.uniform_grid(PROCESS[name], STEPS) for name in NAMES}
    if first:
        times = diffusion.sequential_grid(PROCESS, times, first)
    grid = diffusion.given_modalities_grid(PROCESS, times, given)
    noise = {name: jnp.asarray(noise[name], jnp.float32) for name in NAMES}
    absent = {name: jnp.linspace(-1, 1, len(noise[name])) for name in NAMES}
    conditions = jnp.full(len(noise["sound"]), condition)
    return program()(noise, grid, conditions, guidance_scale, modality_scale, absent)


# The flow of Gaussians is affine, so three starts give its matrix, and no law need be drawn from.
STARTS = {"sound": np.array([0.0, 1.0, 0.0]), "video": np.array([0.0, 0.0, 1.0])}


def affine(samples):
    """Return the offset and the matrix of the map from both noises to these samples."""
    ends = np.stack([samples[name] for name in NAMES])
    return ends[:, 0], ends[:, 1:] - ends[:, :1]


def test_joint_samples_have_the_joint_covariance():
    """The two processes follow different schedules, but each its own flow."""
    offset, matrix = affine(sample(STARTS))
    # Heun's error is 5e-5 here, four times that of twice the steps.
    np.testing.assert_allclose(offset, MEANS[1], atol=1e-4)
    np.testing.assert_allclose(matrix @ matrix.T, COVARIANCE, atol=3e-4)


@pytest.mark.parametrize("given", NAMES)
def test_a_modality_given_the_other_has_the_conditional_law(given):
    """E[x|y] = m_x + ρ·a/b·(y − m_y) and Var[x|y] = a²·(1 − ρ²), and y is kept bit by bit."""
    own, other = (1, 0) if given == NAMES[0] else (0, 1)
    values = np.float32([0.3, 0.3, -1.7])
    starts = {given: values, NAMES[own]: np.array([0.0, 1.0, 0.0])}
    samples = sample(starts, given=(given,))
    np.testing.assert_array_equal(samples[given], values)
    slope = CORRELATION * DEVIATIONS[own] / DEVIATIONS[other]
    means = MEANS[1, own] + slope * (values - MEANS[1, other])
    deviation = DEVIATIONS[own] * np.sqrt(1 - CORRELATION**2)
    expected = means + deviation * starts[NAMES[own]]
    np.testing.assert_allclose(samples[NAMES[own]], expected, atol=1e-4)


@pytest.mark.parametrize("first", NAMES)
def test_a_modality_sampled_first_has_its_marginal_law(first):
    """Its noise alone decides it, and the other one has its law given it: a Cholesky factor."""
    offset, matrix = affine(sample(STARTS, first=(first,)))
    order = [NAMES.index(first), 1 - NAMES.index(first)]
    np.testing.assert_allclose(offset, MEANS[1], atol=1e-4)
    expected = np.linalg.cholesky(COVARIANCE[np.ix_(order, order)])
    np.testing.assert_allclose(matrix[np.ix_(order, order)], expected, atol=3e-4)


def test_scales_of_zero_sample_without_the_condition_and_without_the_other_modality():
    """Without the other modality, each has its marginal law, and both are independent."""
    offset, matrix = affine(sample(STARTS, guidance_scale=0.0))
    np.testing.assert_allclose(offset, MEANS[0], atol=1e-4)
    np.testing.assert_allclose(matrix @ matrix.T, COVARIANCE, atol=3e-4)
    offset, matrix = affine(sample(STARTS, modality_scale=0.0))
    np.testing.assert_allclose(offset, MEANS[1], atol=1e-4)
    np.testing.assert_allclose(matrix, np.diag(DEVIATIONS), atol=3e-4)


def test_guidance_is_its_equation_in_one_network_call():
    """Each scale is that of its modality, and the absent modality is pure noise."""
    calls = []

    def counted(x_t, t, condition):
        calls.append(len(condition))
        return denoiser(x_t, t, condition)

    generator = np.random.default_rng(0)
    draw = lambda: {name: jnp.asarray(generator.standard_normal(5, np.float32)) for name in NAMES}
    x_t, noise, t = draw(), draw(), {name: jnp.linspace(0.1, 0.9, 5) for name in NAMES}
    s, w = {"sound": 3.0, "video": 2.0}, {"sound": 1.5, "video": 0.5}
    condition = jnp.ones(5, int)
    found = diffusion.guide_jointly(counted, PROCESS, condition, 0, s, w, noise)(x_t, t)
    assert calls == [4 * 5]
    full, without = denoiser(x_t, t, condition), denoiser(x_t, t, 0 * condition)
    for i, name in enumerate(NAMES):
        alpha, sigma = PROCESS[name].alpha(t[name]), PROCESS[name].sigma(t[name])
        residual = x_t[name] - alpha * MEANS[1, i]
        whitened = residual / (alpha**2 * DEVIATIONS[i] ** 2 + sigma**2)
        alone = MEANS[1, i] + alpha * DEVIATIONS[i] ** 2 * whitened, sigma * whitened
        for y, u, a, guided in zip(full, without, alone, found, strict=False):
            if y is not None:
                y, u, guided = y[name], u[name], guided[name]
                expected = y + (s[name] - 1) * (y - u) + (w[name] - 1) * (y - a)
                np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-5)
    plain = diffusion.guide_jointly(counted, PROCESS, condition, 0, 1.0)(x_t, t)
    assert calls[1:] == [2 * 5]
    for name in NAMES:
        np.testing.assert_array_equal(plain.clean[name], full.clean[name])


def test_the_loss_counts_modalities_that_are_not_given():
    """The network returns zeros, so each loss is the mean of (z − x)², with z from its input."""
    seen, flow = {}, {name: RectifiedFlow() for name in NAMES}

    def apply(x_t, t):
        seen.update(x_t=x_t, t=t)
        return jax.tree.map(jnp.zeros_like, x_t)

    count, generator = 4000, np.random.default_rng(1)
    x = {"sound": generator.standard_normal((count, 3)), "video": generator.random((count, 2, 2))}
    x = jax.tree.map(np.float32, x)
    options = dict(process=flow, target=velocity, times={name: uniform for name in NAMES})
    shares = dict(clean_share=0.3, noise_share=0.2)
    joint_loss = lambda x: diffusion.joint_loss(jax.random.key(0), apply, x, **options, **shares)
    found = jax.device_get(quick_jit(lambda x: (joint_loss(x), dict(seen)))(x))
    (losses, t, given), seen = found
    clean, lost = ({n: np.asarray(seen["t"][n] == end) for n in NAMES} for end in (0, 1))
    # Four deviations of a share of 4,000 examples are 0.03 at most.
    for name, other in (NAMES, NAMES[::-1]):
        np.testing.assert_array_equal(given[name], clean[name])
        np.testing.assert_array_equal(seen["t"][name], t[name])
        np.testing.assert_array_equal(seen["x_t"][name][clean[name]], x[name][clean[name]])
        assert np.all(losses[name][clean[name]] == 0)
        assert abs(clean[name].mean() - 0.15) < 0.03 and abs(lost[name].mean() - 0.1) < 0.03
        fixed = clean[other] | lost[other]
        assert not np.any((clean[name] | lost[name]) & fixed)
        drawn = ~clean[name] & ~lost[name]
        noisy = t[name][drawn][:, None]
        flat = lambda a: np.asarray(a).reshape(count, -1)[drawn]  # noqa: B023
        z = (flat(seen["x_t"][name]) - (1 - noisy) * flat(x[name])) / noisy
        expected = ((z - flat(x[name])) ** 2).mean(1)
        late = np.asarray(noisy[:, 0] > 0.05)  # division by t enlarges float32's rounding
        np.testing.assert_allclose(losses[name][drawn][late], expected[late], rtol=1e-3)
    both = ~(clean["sound"] | clean["video"] | lost["sound"] | lost["video"])
    own = np.corrcoef(t["sound"][both], t["video"][both])[0, 1]
    assert abs(own) < 4 / np.sqrt(both.sum())


def test_the_known_rows_of_continued_clips_are_clean_and_have_no_loss():
    """The network returns zeros, so the loss is the mean of (z − x)² over the other rows."""
    seen, flow = {}, {name: RectifiedFlow() for name in NAMES}

    def apply(x_t, t):
        seen.update(x_t=x_t, t=t)
        return jax.tree.map(jnp.zeros_like, x_t)

    count, generator = 500, np.random.default_rng(2)
    x = {"sound": generator.random((count, 8, 1)), "video": generator.random((count, 4, 2))}
    x, known = jax.tree.map(np.float32, x), {"sound": 2, "video": 1}
    options = dict(process=flow, target=velocity, times={name: uniform for name in NAMES})
    shares = dict(clean_share=0.2, noise_share=0.2, continued_share=0.5, known_part=0.25)
    joint_loss = lambda x: diffusion.joint_loss(jax.random.key(0), apply, x, **options, **shares)
    found = jax.device_get(quick_jit(lambda x: (joint_loss(x), dict(seen)))(x))
    (losses, t, given), seen = found
    continued = {n: np.asarray((seen["t"][n][:, 0] == 0) & ~given[n]) for n in NAMES}
    for name in NAMES:
        times, rows, own = np.asarray(seen["t"][name]), known[name], continued[name]
        assert times.shape == x[name].shape[:2]
        assert abs(own.mean() - 0.5 * 0.8) < 0.1  # neither given nor pure noise
        assert np.all(times[own, :rows] == 0) and np.all(times[own, rows:] > 0)
        assert given[name].any() and np.all(times[given[name]] == 0)
        assert np.all(times[:, rows:] == times[:, -1:])  # all other rows share a time
        np.testing.assert_array_equal(seen["x_t"][name][own, :rows], x[name][own, :rows])
        np.testing.assert_array_equal(t[name], times[:, -1])
        late = own & (times[:, -1] > 0.05)
        level = times[late, -1][:, None, None]
        z = (seen["x_t"][name][late, rows:] - (1 - level) * x[name][late, rows:]) / level
        expected = np.mean((z - x[name][late, rows:]) ** 2, axis=(1, 2))
        np.testing.assert_allclose(losses[name][late], expected, rtol=1e-3)
    lost = {n: np.asarray(seen["t"][n] == 1).all(1) for n in NAMES}
    assert lost["sound"].any() and continued["video"][lost["sound"]].any()
    # If no modality is alone, the first rows of both are known.
    both = ~(lost["sound"] | lost["video"] | given["sound"] | given["video"])
    np.testing.assert_array_equal(continued["sound"][both], continued["video"][both])


@pytest.mark.parametrize("known_part", [0.0, 0.25])
@pytest.mark.parametrize(
    ("target", "weighting"),
    [(clean, {"sound": None, "video": bounded_velocity}), (score, None), (score, min_snr)],
)
def test_given_parts_do_not_spoil_gradients(target, weighting, known_part):
    """At time 0 the clean target's weights and the score are infinite, and no loss counts them."""
    flow, seen = {name: RectifiedFlow() for name in NAMES}, []
    x = {"sound": jnp.ones((16, 8, 1)), "video": jnp.ones((16, 4, 2))}
    options = dict(process=flow, target=target, weighting=weighting)
    options |= dict(times={name: uniform for name in NAMES}, known_part=known_part)
    shares = dict(clean_share=0.5, noise_share=0.0, continued_share=0.5 if known_part else 0.0)

    @quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(scale):
        def apply(x_t, t):
            seen.append(t)
            return jax.tree.map(lambda a: scale * a, x_t)

        found = diffusion.joint_loss(jax.random.key(0), apply, x, **options, **shares)
        return sum(map(jnp.mean, jax.tree.leaves(found.losses))), seen[0]

    (value, times), slope = loss(0.5)
    assert np.isfinite(value) and np.isfinite(slope) and slope != 0
    assert all(np.any(t == 0) for t in times.values())


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (dict(clean_share=0.8, noise_share=0.3), "together at most 1"),
        (dict(clean_share=-0.1, noise_share=0.3), "0 or more"),
        (dict(clean_share=0.3, noise_share=-0.1), "0 or more"),
        (dict(continued_share=1.5), "continued_share is 1.5"),
        (dict(continued_share=0.5), "continued_share is 0.5 and known_part 0"),
    ],
)
def test_shares_of_more_than_all_examples_are_refused(shares, words):
    """Otherwise some examples would have a modality that is clean and noise at once."""
    x, flow = {name: jnp.ones((4, 2)) for name in NAMES}, {name: RectifiedFlow() for name in NAMES}
    options = dict(process=flow, target=velocity, times={name: uniform for name in NAMES})
    loss = lambda **shares: diffusion.joint_loss(
        jax.random.key(0), lambda x_t, t: x_t, x, **options, **shares
    )
    with pytest.raises(ValueError, match=words):
        loss(**shares)


def test_shares_of_all_examples_are_taken():
    """In floats 1 − 0.9 − 0.1 is below 0."""
    x, flow = {name: jnp.ones((4, 2)) for name in NAMES}, {name: RectifiedFlow() for name in NAMES}
    options = dict(process=flow, target=velocity, times={name: uniform for name in NAMES})
    options |= dict(clean_share=0.9, noise_share=0.1)
    found = jax.eval_shape(
        lambda x: diffusion.joint_loss(jax.random.key(0), lambda x_t, t: x_t, x, **options), x
    )
    assert found.losses["sound"].shape == (4,)


def test_each_modality_draws_its_times_with_its_own_function():
    """Stratified times of 64 examples lie in 64 parts of the domain, one in each."""
    seen, flow = {}, {name: RectifiedFlow() for name in NAMES}

    def apply(x_t, t):
        seen.update(t)
        return x_t

    x = {"sound": jnp.zeros((64, 8, 1)), "video": jnp.zeros((64, 4, 1))}
    options = dict(process=flow, target=velocity, times={name: uniform for name in NAMES})
    options |= dict(variates={"sound": independent, "video": stratified})
    shares = dict(clean_share=0.0, noise_share=0.0)
    diffusion.joint_loss(jax.random.key(0), apply, x, **options, **shares)
    parts = {name: np.unique(np.floor(np.asarray(t) * 64)) for name, t in seen.items()}
    assert len(parts["video"]) == 64 and len(parts["sound"]) < 50


def test_known_rows_of_parts_that_floats_cannot_hold():
    """0.28·25 is 7.000000000000001, and 0.29·100 is 28.999999999999996."""
    for part, rows, count in ((0.28, 25, 7), (0.29, 100, 29)):
        np.testing.assert_array_equal(known_rows(part, rows), np.arange(rows) < count)
    with pytest.raises(ValueError, match=r"0\.3 of 25 rows is 7\.5 rows"):
        known_rows(0.3, 25)
    for part in (0.0, 1.0):
        with pytest.raises(ValueError, match="a whole number from 1 to 3"):
            known_rows(part, 4)


def test_windows_wait_where_they_continue():
    """Given clips wait at the clean end. EDM's lies outside of the domain."""
    times = {name: jnp.linspace(1, 0, 4) for name in NAMES}
    flow, rows = {"sound": EDM(), "video": RectifiedFlow()}, {"sound": 8, "video": 4}
    grids = diffusion.windowed_grid(flow, times, rows, 0.25, 3, start_known=False)
    assert grids["sound"].shape == (3, 4, 8) and grids["video"].shape == (3, 4, 4)
    np.testing.assert_array_equal(grids["video"][0], np.tile(times["video"][:, None], 4))
    assert not np.any(grids["sound"][1:, :, :2]) and np.all(grids["sound"][1:, 0, 2:] == 1)
    known = diffusion.windowed_grid(flow, times, rows, 0.25, 1, start_known=True)
    assert not np.any(known["video"][0, :, 0]) and np.all(known["video"][0, 0, 1:] == 1)
    assert not np.any(diffusion.given_modalities_grid(flow, times, ["sound"])["sound"])
    assert not np.any(diffusion.sequential_grid(flow, times, ["sound"])["sound"][3:])


def test_a_modality_scale_without_noise_is_refused():
    with pytest.raises(ValueError, match="absent modalities, which are noise: give noise"):
        diffusion.guide_jointly(denoiser, PROCESS, jnp.zeros(2, int), 0, 1.0, 2.0)
