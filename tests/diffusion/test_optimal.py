import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import quick_jit
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    clean,
    noise,
    optimal,
    velocity,
)

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
PROCESSES = [
    RectifiedFlow(),
    VariancePreservingCosine(),
    VarianceExploding(sigma_max=5.0),
    EDM(domain=(0.002, 5.0)),
]
processes = pytest.mark.parametrize(
    "process", PROCESSES, ids=lambda process: type(process).__name__
)
# A process enters by alpha and sigma alone, so one that changes both and one with alpha = 1 do.
two_processes = pytest.mark.parametrize(
    "process", [PROCESSES[0], PROCESSES[3]], ids=lambda process: type(process).__name__
)


def density(x):
    return np.sum(WEIGHTS * norm.pdf(np.asarray(x)[..., None], MEANS, DEVIATIONS), axis=-1)


def numbers(process, t):
    return float(process.alpha(jnp.asarray(t))), float(process.sigma(jnp.asarray(t)))


def moments(process, x_t, t):
    """Return ∫ p(x)·N(x_t; alpha·x, sigma²) dx, and the mean and variance of x given x_t.

    They are computed by quadrature.
    """
    alpha, sigma = numbers(process, t)
    joint = lambda x: float(density(x)) * norm.pdf(x_t, alpha * x, sigma)
    peaks = [-2, 1, x_t / max(alpha, 0.1)]  # where the integrand may be narrow
    integral = lambda f: sum(
        quad(lambda x: f(x) * joint(x), a, b, epsabs=1e-15, epsrel=1e-13, limit=500)[0]
        for a, b in zip([-12, *sorted(peaks)], [*sorted(peaks), 12], strict=True)
    )
    evidence = integral(lambda x: 1)
    mean = integral(lambda x: x) / evidence
    return evidence, mean, integral(lambda x: (x - mean) ** 2) / evidence


def parameters():
    # Copy, because JAX shares a NumPy array with a live program, in the precision of that program.
    return tuple(jnp.asarray(a.copy()) for a in (WEIGHTS, MEANS, DEVIATIONS))


def mixture(process):
    return jax.jit(optimal.gaussian_mixture(process, *parameters()))


@functools.partial(jax.jit, static_argnums=0)
def log_density(process, x_t, t):
    return optimal.gaussian_mixture_log_density(process, *parameters(), x_t, t)


@functools.partial(jax.jit, static_argnums=0)
def score(process, x_t, t):
    return optimal.gaussian_mixture_score(process, *parameters(), x_t, t)


def finite(process, points):
    return jax.jit(optimal.finite_data(process, points))


@processes
def test_mixture_against_integrals_of_the_posterior(process, float64):
    start, end = process.domain
    cases = [
        (x_t, start + (end - start) * u) for u in (0.1, 0.5, 0.9) for x_t in (-3.0, -0.6, 0.4, 2.5)
    ]
    x_t, t = (jnp.asarray(column) for column in zip(*cases, strict=True))
    prediction, log_p = mixture(process)(x_t, t), log_density(process, x_t, t)
    for i, case in enumerate(cases):
        evidence, mean, _ = moments(process, *case)
        alpha, sigma = numbers(process, case[1])
        # quad's own error estimate, relative to the smallest evidence here.
        np.testing.assert_allclose(prediction.clean[i], mean, atol=1e-10)
        np.testing.assert_allclose(prediction.noise[i], (case[0] - alpha * mean) / sigma, atol=1e-9)
        np.testing.assert_allclose(log_p[i], np.log(evidence), atol=1e-10)


def test_log_density_of_the_mixture_itself(float64):
    x, t = jnp.array([-2.0, 0.0, 1.0]), jnp.zeros(3)
    # Published with the mixture, to 8 digits.
    expected = [-1.42847607, -1.83321762, -1.05246992]
    np.testing.assert_allclose(log_density(RectifiedFlow(), x, t), expected, atol=5e-9)
    np.testing.assert_allclose(log_density(RectifiedFlow(), x, t + 1), norm.logpdf(x), atol=1e-12)


@two_processes
def test_score_is_the_gradient_and_minus_the_noise_over_sigma(process, float64):
    start, end = process.domain
    x_t, t = jnp.linspace(-4, 4, 9), jnp.linspace(start, end, 9)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(log_density(process, x, t))))(x_t)
    np.testing.assert_allclose(score(process, x_t, t), gradient, atol=1e-10)
    # Rectified flow and VP start at sigma = 0.
    later = slice(1, None)
    result = -mixture(process)(x_t, t).noise / process.sigma(t)
    np.testing.assert_allclose(result[later], gradient[later], atol=1e-10)


@pytest.mark.parametrize(
    "process", PROCESSES[:2], ids=["RectifiedFlow", "VariancePreservingCosine"]
)
def test_ends(process):
    x = jnp.array([-1.5, 0.3, 4.0])
    points = jnp.array([-1.5, 0.3, 1.5])
    at_clean, at_noise = jnp.zeros(3), jnp.ones(3)
    prediction = mixture(process)(x, at_clean)
    np.testing.assert_allclose(prediction.clean, x, rtol=1e-6)
    np.testing.assert_array_equal(prediction.noise, 0)
    prediction = mixture(process)(x, at_noise)
    # The mixture's mean. Its weights .3 and .7 are rounded like log densities down to −9, by 1e-6.
    np.testing.assert_allclose(prediction.clean, np.full(3, 0.1), atol=2e-6)
    np.testing.assert_allclose(prediction.noise, x, rtol=1e-6)
    prediction = finite(process, points)(x, at_clean)
    # The nearest point.
    np.testing.assert_allclose(prediction.clean, [-1.5, 0.3, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(prediction.noise, 0)
    prediction = finite(process, points)(x, at_noise)
    np.testing.assert_allclose(prediction.clean, np.full(3, 0.1), rtol=1e-6)
    np.testing.assert_allclose(prediction.noise, x, rtol=1e-6)


@two_processes
def test_both_halves_add_up_to_the_state(process, float64):
    start, end = process.domain
    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3, 2)))
    t = jnp.linspace(start + 0.01, end, 8)
    points = x_t[:5] * jnp.array([1.0, 0.5])
    denoisers = (
        optimal.finite_data(process, points),
        optimal.gaussian_mixture(process, jnp.ones(5), points, jnp.linspace(0.1, 0.5, 5)),
        optimal.gaussian_mixture(process, jnp.ones(5), points, jnp.abs(points) + 0.1),
    )
    states = quick_jit(lambda x_t, t: [process.corrupt(*f(x_t, t)[:2], t) for f in denoisers])
    for state in states(x_t, t):
        np.testing.assert_allclose(state, x_t, atol=1e-13)


def test_two_dimensions_against_a_grid(float64):
    """The trapezoidal rule is exact to rounding for Gaussians on a grid this fine and wide."""
    process, weights = RectifiedFlow(), np.array([0.2, 0.5, 0.3])
    means = np.array([[-1.0, 0.5], [1.0, 1.0], [0.0, -1.5]])
    axis = np.linspace(-7, 7, 561)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)  # [grid grid 2]
    x_t, t = np.array([[0.3, -0.2], [-1.0, 0.9]]), np.array([0.3, 0.8])
    for deviations in (np.array([0.3, 0.5, 0.4]), np.array([[0.3, 0.6], [0.5, 0.4], [0.7, 0.2]])):
        spread = deviations if deviations.ndim == 2 else np.repeat(deviations[:, None], 2, axis=1)
        p = sum(
            w * norm.pdf(x, m, s).prod(-1) for w, m, s in zip(weights, means, spread, strict=True)
        )
        mixture = tuple(map(jnp.asarray, (weights, means, deviations)))
        prediction = quick_jit(optimal.gaussian_mixture(process, *mixture))(x_t, t)
        log_density = functools.partial(optimal.gaussian_mixture_log_density, process, *mixture)
        log_p = quick_jit(log_density)(x_t, t)
        for i in range(2):
            joint = p * norm.pdf(x_t[i], (1 - t[i]) * x, t[i]).prod(-1)
            mean = np.sum(joint[..., None] * x, axis=(0, 1)) / joint.sum()
            np.testing.assert_allclose(prediction.clean[i], mean, atol=1e-11)
            np.testing.assert_allclose(
                prediction.noise[i], (x_t[i] - (1 - t[i]) * mean) / t[i], atol=1e-11
            )
            expected = np.log(joint.sum() * (axis[1] - axis[0]) ** 2)
            np.testing.assert_allclose(log_p[i], expected, atol=1e-11)


@two_processes
def test_full_covariances_against_numpy(process, float64):
    """By linear algebra, a component has x̂ = m + alpha·Σ·(alpha²·Σ + sigma²)⁻¹·(x_t − alpha·m)."""
    random = np.random.default_rng(0)
    weights, means = np.array([0.2, 0.5, 0.3]), random.standard_normal((3, 2, 2))
    roots = random.standard_normal((3, 4, 4))
    roots[1, :, 0] = 0  # a singular covariance
    covariances = roots @ roots.transpose(0, 2, 1)
    x_t = 2 * random.standard_normal((5, 2, 2))
    start, end = process.domain
    t = start + (end - start) * np.linspace(0.2, 0.9, 5)
    spread = optimal.principal_axes(jnp.asarray(covariances.reshape(3, 2, 2, 2, 2)))
    mixture = jnp.asarray(3 * weights), jnp.asarray(means), spread  # weights need not sum to 1

    @quick_jit
    def found(x_t, t):
        return (
            optimal.gaussian_mixture(process, *mixture)(x_t, t),
            optimal.gaussian_mixture_log_density(process, *mixture, x_t, t),
            optimal.gaussian_mixture_score(process, *mixture, x_t, t),
        )

    prediction, log_p, score = jax.device_get(found(x_t, t))
    for i in range(5):
        alpha, sigma = numbers(process, t[i])
        noised = alpha**2 * covariances + sigma**2 * np.eye(4)
        centred = x_t[i].ravel() - alpha * means.reshape(3, 4)
        pull = np.linalg.solve(noised, centred[..., None])[..., 0]
        cleans = means.reshape(3, 4) + alpha * np.einsum("kij,kj->ki", covariances, pull)
        laws = (multivariate_normal(cov=covariance) for covariance in noised)
        joint = weights * [law.pdf(a) for law, a in zip(laws, centred, strict=True)]
        posterior = joint / joint.sum()
        # Condition numbers up to (alpha·s/sigma)² = 1e5 amplify rounding.
        np.testing.assert_allclose(
            prediction.clean[i].ravel(), posterior @ cleans, rtol=1e-9, atol=1e-10
        )
        np.testing.assert_allclose(
            prediction.noise[i].ravel(), sigma * posterior @ pull, rtol=1e-9, atol=1e-10
        )
        np.testing.assert_allclose(score[i].ravel(), -posterior @ pull, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_p[i], np.log(joint.sum()), atol=1e-9)


def test_singular_covariances_at_the_clean_end():
    """There x_t is a data point, on the plane x_1 = 3 or the line x_2 = x_1, so x̂ = x_t."""
    covariances = jnp.array([[[0.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    means, weights = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.ones(2)
    x, t = jnp.array([[3.0, 1.5], [-1.0, -1.0]]), jnp.zeros(2)
    spread = optimal.principal_axes(covariances)
    spread = spread._replace(deviations=jnp.where(spread.deviations < 1e-3, 0, spread.deviations))
    assert jnp.sum(spread.deviations == 0) == 2
    mixture = RectifiedFlow(), weights, means, spread
    prediction = optimal.gaussian_mixture(*mixture)(x, t)
    # The axes are exact to float32's 1e-7, for numbers up to 3.
    np.testing.assert_allclose(prediction.clean, x, atol=1e-6)
    np.testing.assert_array_equal(prediction.noise, jnp.zeros_like(x))
    assert jnp.isfinite(optimal.gaussian_mixture_log_density(*mixture, x, t)).all()
    assert jnp.isfinite(optimal.gaussian_mixture_score(*mixture, x, t)).all()
    ones = optimal.principal_axes(jnp.ones((1, 3, 3)))  # two variances are rounded below 0
    np.testing.assert_allclose(jnp.sort(ones.deviations[0]), [0, 0, 3**0.5], atol=1e-6)


def test_covariances_without_axes_are_refused():
    covariances = jnp.stack([jnp.eye(4)] * 2)
    denoiser = optimal.gaussian_mixture(
        RectifiedFlow(), jnp.ones(2), jnp.zeros((2, 4)), covariances
    )
    with pytest.raises(
        ValueError, match=r"got shape \(2, 4, 4\)\. For covariances give principal_axes"
    ):
        denoiser(jnp.zeros((5, 4)), jnp.ones(5))
    with pytest.raises(ValueError, match=r"\[components \*shape \*shape\]; got shape \(2, 4, 3\)"):
        optimal.principal_axes(jnp.zeros((2, 4, 3)))


@two_processes
def test_finite_data_against_numpy(process, float64):
    random = np.random.default_rng(0)
    points = random.standard_normal((600, 3, 2))  # two full chunks and a part
    x_t = 1.5 * random.standard_normal((4, 3, 2))
    start, end = process.domain
    t = start + (end - start) * np.array([0.2, 0.5, 0.8, 0.95])
    prediction = finite(process, jnp.asarray(points))(jnp.asarray(x_t), jnp.asarray(t))
    for i in range(4):
        alpha, sigma = numbers(process, t[i])
        logits = -np.sum((x_t[i] - alpha * points) ** 2, axis=(1, 2)) / (2 * sigma**2)
        weights = np.exp(logits - logits.max())
        mean = np.tensordot(weights / weights.sum(), points, 1)
        np.testing.assert_allclose(prediction.clean[i], mean, atol=1e-12)
        np.testing.assert_allclose(prediction.noise[i], (x_t[i] - alpha * mean) / sigma, atol=1e-12)


def test_a_mixture_of_vanishing_deviations_is_finite_data(float64):
    process = VariancePreservingCosine()
    random = np.random.default_rng(0)
    points, x_t = (
        jnp.asarray(random.standard_normal((5, 2))),
        jnp.asarray(random.standard_normal((6, 2))),
    )
    start, end = process.domain
    t = start + (end - start) * jnp.linspace(0.3, 1.0, 6)
    expected = finite(process, points)(x_t, t)
    mixture = optimal.gaussian_mixture(process, jnp.ones(5), points, jnp.full(5, 1e-6))
    result = quick_jit(mixture)(x_t, t)
    # They differ by s²/sigma², 1e-8 at sigma ≥ .01, times the factor before it.
    np.testing.assert_allclose(result.clean, expected.clean, atol=1e-7)
    np.testing.assert_allclose(result.noise, expected.noise, atol=1e-7)


def test_memory_is_not_points_times_batch_times_dimensions():
    points, batch, dimensions = 2048, 32, 784
    denoise = lambda points, x, t: optimal.finite_data(RectifiedFlow(), points)(x, t)
    arguments = (jnp.zeros((points, dimensions)), jnp.zeros((batch, dimensions)), jnp.zeros(batch))
    memory = jax.jit(denoise).lower(*arguments).compile().memory_analysis()
    # The whole difference would take 205 MB.
    assert memory.temp_size_in_bytes < 4 * points * batch * dimensions / 5


@pytest.mark.parametrize("distance", [1e2, 1e4])
def test_far_from_the_data_in_float32(distance):
    """Nothing overflows, and the answer is the extreme point or component."""
    process = RectifiedFlow()
    x_t, t = jnp.array([-distance, distance]), jnp.array([0.5, 0.5])
    points = jnp.array([-1.0, 0.2, 1.0])
    prediction = finite(process, points)(x_t, t)
    np.testing.assert_allclose(prediction.clean, [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(
        prediction.noise, (x_t - 0.5 * jnp.array([-1.0, 1.0])) / 0.5, rtol=1e-6
    )
    with jax.enable_x64(True):
        expected = mixture(process)(jnp.asarray(x_t, float), jnp.asarray(t, float))
    prediction = mixture(process)(x_t, t)
    np.testing.assert_allclose(prediction.clean, expected.clean, rtol=1e-5)
    np.testing.assert_allclose(prediction.noise, expected.noise, rtol=1e-5)


def test_close_to_the_data_in_float32():
    """|a|² − 2ab + |b|² would lose the distance of two near points.

    Here sigma = .002, in 784 dimensions.
    """
    x, direction = np.random.default_rng(0).uniform(-1, 1, (2, 784))
    # Their distance is 1.6e-3, less than sigma.
    points = np.stack([x, x + 1e-4 * direction]).astype(np.float32)
    x_t, t = points[:1], np.array([0.002])
    result = finite(EDM(), jnp.asarray(points))(jnp.asarray(x_t), jnp.asarray(t, jnp.float32))
    further = np.sum((points[1].astype(float) - points[0]) ** 2) / (2 * 0.002**2)
    weight = 1 / (1 + np.exp(-further))  # weight of the first point
    expected = weight * points[0] + (1 - weight) * points[1]
    assert 0.5 < weight < 0.7
    # Rounding of numbers up to one.
    np.testing.assert_allclose(result.clean[0], expected, atol=3e-7)


@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_gradients_are_finite_at_both_ends(end):
    process, x, t = RectifiedFlow(), jnp.array([[0.5], [-1.0]]), jnp.full(2, end)
    points = jnp.array([[0.5], [-0.3]])
    for denoiser in (
        finite(process, points),
        optimal.gaussian_mixture(process, jnp.ones(2), points, jnp.ones(2)),
    ):
        for half in (0, 1):
            # With level 0 XLA has rounded the nearest point's distance in two ways.
            for level in (0, 3):
                options = {"xla_backend_optimization_level": level}
                loss = lambda x, f=denoiser, half=half: jnp.sum(f(x, t)[half])
                assert np.all(np.isfinite(jax.jit(jax.grad(loss), compiler_options=options)(x)))


def least_loss(process, target, t):
    """Return E Var[y | x_t] by quadrature over x_t and x.

    y = (c − d·alpha/sigma)·x + d·x_t/sigma.
    """
    alpha, sigma = numbers(process, t)
    c, d = (float(a) for a in target(process, jnp.asarray(t)))
    grid, x_t = np.linspace(-7, 7, 2001), np.linspace(-9, 9, 801)
    joint = density(grid) * norm.pdf(x_t[:, None], alpha * grid, sigma)  # [x_t, x]
    evidence = joint.sum(1)
    mean = joint @ grid / evidence
    variance = joint @ grid**2 / evidence - mean**2
    return (c - d * alpha / sigma) ** 2 * np.sum(evidence * variance) / evidence.sum()


@pytest.mark.parametrize("target", [clean, noise, velocity])
def test_least_loss_of_the_mixture(target, float64):
    process, size = RectifiedFlow(), 200_000
    random = np.random.default_rng(0)
    component = random.choice(2, size, p=WEIGHTS)
    x = jnp.asarray(MEANS[component] + DEVIATIONS[component] * random.standard_normal(size))[
        :, None
    ]
    denoiser = optimal.gaussian_mixture(
        process, *(jnp.asarray(a) for a in (WEIGHTS, MEANS[:, None], DEVIATIONS))
    )
    losses_at = quick_jit(
        lambda x, t: optimal.denoising_loss(jax.random.key(0), denoiser, process, target, x, t)
    )
    for t in (0.2, 0.5, 0.8):
        losses = np.asarray(losses_at(x, np.full(size, t)))
        error = losses.std() / np.sqrt(size)
        np.testing.assert_allclose(losses.mean(), least_loss(process, target, t), atol=4 * error)


@processes
@pytest.mark.parametrize("target", [clean, noise, velocity])
def test_least_loss_of_a_gaussian(process, target, float64):
    size, mean, deviation = 100_000, 0.7, 0.4
    x = mean + deviation * jnp.asarray(np.random.default_rng(0).standard_normal((size // 4, 4)))
    denoiser = optimal.gaussian_mixture(
        process, jnp.ones(1), jnp.full((1, 4), mean), jnp.full(1, deviation)
    )
    start, end = process.domain
    for t in start + (end - start) * np.array([0.2, 0.5, 0.9]):
        expected = optimal.gaussian_least_loss(process, target, jnp.asarray(t), deviation)
        losses = optimal.denoising_loss(
            jax.random.key(0), denoiser, process, target, x, jnp.full(len(x), t)
        )
        # The error is normal, so its square deviates by √2 times its mean.
        np.testing.assert_allclose(losses.mean(), expected, rtol=4 * np.sqrt(2 / size))


def test_velocity_is_hardest_between_the_ends(float64):
    t = jnp.linspace(0, 1, 101)
    loss = optimal.gaussian_least_loss(RectifiedFlow(), velocity, t, 0.5)
    # The variances of the noise and of the data.
    np.testing.assert_allclose([loss[0], loss[-1]], [1, 0.25], rtol=1e-12)
    # (1 − t)²·s² + t² is least at s²/(1 + s²), where the loss is 1 + s².
    t_hardest = 0.5**2 / (1 + 0.5**2)
    np.testing.assert_allclose(t[np.argmax(loss)], t_hardest, atol=1e-12)
    np.testing.assert_allclose(loss.max(), 1.25, rtol=1e-12)


def test_a_mixture_whose_parts_disagree_is_refused():
    denoiser = optimal.gaussian_mixture(
        RectifiedFlow(), jnp.ones(3) / 3, jnp.zeros((2, 4)), jnp.ones(2)
    )
    with pytest.raises(ValueError, match="got 3 weights, 2 means and 2 deviations"):
        denoiser(jnp.zeros((5, 4)), jnp.ones(5))
