"""DMD against the divergence of two Gaussians, and its helpers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import S, exact_denoiser, nodes
from scipy import stats

from genjax.diffusion import Prediction, RectifiedFlow, VariancePreservingCosine, targets
from genjax.distillation import distribution_matching as dm

KEY = jax.random.key(0)
FLOW = RectifiedFlow()
MEAN, DEVIATION = 0.4, 1.3  # of the student's samples
constant = lambda t: lambda process, u: jnp.full_like(u, t)


def fake_denoiser(process):
    """Of N(MEAN, DEVIATION²)."""

    def denoiser(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        rest = (x_t - alpha * MEAN) / ((alpha * DEVIATION) ** 2 + sigma**2)
        return Prediction(MEAN + alpha * DEVIATION**2 * rest, sigma * rest)

    return denoiser


@pytest.mark.parametrize("process", [FLOW, VariancePreservingCosine()], ids=str)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_gradient_is_that_of_the_divergence_of_gaussians(process, t, float64):
    """(sigma²/alpha²)·∂KL(p_fake ‖ p_real)/∂(mean, deviation) of the noised laws, by quadrature."""
    ε, z, weights = nodes()
    ε = ε / S  # of unit deviation

    def loss(theta):
        samples = theta[0] + theta[1] * jnp.asarray(ε)
        each, _ = dm.distribution_matching_loss(
            KEY,
            samples,
            exact_denoiser(process),
            fake_denoiser(process),
            process=process,
            times=constant(t),
            normalize=False,
            noise=jnp.asarray(z),
        )
        return jnp.sum(weights * each)

    def divergence(theta):
        alpha, sigma = process.alpha(jnp.asarray(t)), process.sigma(jnp.asarray(t))
        real, fake = (alpha * S) ** 2 + sigma**2, (alpha * theta[1]) ** 2 + sigma**2
        return (fake / real + (alpha * theta[0]) ** 2 / real - 1 - jnp.log(fake / real)) / 2

    theta = jnp.array([MEAN, DEVIATION])
    factor = (process.sigma(jnp.asarray(t)) / process.alpha(jnp.asarray(t))) ** 2
    np.testing.assert_allclose(
        jax.grad(loss)(theta), factor * jax.grad(divergence)(theta), rtol=1e-10
    )


def test_the_gradient_vanishes_where_the_student_has_the_data(float64):
    x = jax.random.normal(KEY, (8, 3), jnp.float64)
    loss, _ = dm.distribution_matching_loss(
        KEY,
        x,
        exact_denoiser(FLOW),
        exact_denoiser(FLOW),
        process=FLOW,
        times=constant(0.5),
    )
    np.testing.assert_array_equal(loss, 0)


def test_without_noise_the_teacher_has_no_error_and_nothing_moves():
    x = jax.random.normal(KEY, (8, 3))
    loss, _ = dm.distribution_matching_loss(
        KEY, x, exact_denoiser(FLOW), fake_denoiser(FLOW), process=FLOW, times=constant(0.0)
    )
    np.testing.assert_allclose(loss, 0, atol=1e-5)  # rounding over the least error, squared


def test_each_examples_gradient_is_in_units_of_the_teachers_error():
    """½‖x − sg(x − g)‖² has the gradient g/dimension, g = (x̂_fake − x̂_real)/mean|x − x̂_real|."""
    x, z = jax.random.normal(KEY, (2, 5, 3))
    real, fake = exact_denoiser(FLOW), fake_denoiser(FLOW)
    t = jnp.full(5, 0.6)
    x_t = FLOW.corrupt(x, z, t)
    g = fake(x_t, t).clean - real(x_t, t).clean
    g = g / np.abs(x - real(x_t, t).clean).mean(1, keepdims=True)
    slope = jax.grad(
        lambda x: dm.distribution_matching_loss(
            KEY, x, real, fake, process=FLOW, times=constant(0.6), noise=z
        )[0].sum()
    )(x)
    np.testing.assert_allclose(slope, g / 3, rtol=1e-4)


def test_the_fake_network_learns_samples_but_does_not_move_them():
    apply = lambda x, t: jnp.sin(x)
    loss = lambda x: dm.fake_loss(
        KEY, apply, x, process=FLOW, target=targets.velocity, times=constant(0.5)
    )[0].sum()
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(jax.grad(loss)(x), 0)
    assert loss(x) != loss(2 * x)


def test_simulated_inputs_have_the_type_of_the_noise():
    noise, times = jnp.ones((2, 3), jnp.bfloat16), jnp.array([1.0, 0.5, 0.0])
    x, _ = dm.simulated_inputs(KEY, lambda x, t, s: 0 * x, FLOW, noise, times)
    assert x.dtype == jnp.bfloat16


def test_simulated_inputs_are_the_students_own_at_the_samplers_times():
    """The student's data are 2 plus the jump's start, and x_t = alpha·data + sigma·noise.

    Jumps end at 0, the last time, and start at the time before t. The first input is noise.
    """
    count = 30_000
    times = jnp.array([1.0, 0.75, 0.5, 0.0])
    noise = jax.random.normal(jax.random.key(1), (count, 1))
    student = lambda x, t, s: 0 * x + (2 + t - 5 * s)[:, None]
    x, t = dm.simulated_inputs(KEY, student, FLOW, noise, times)
    found, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(found, [0.5, 0.75, 1.0])
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(x[t == 1], noise[t == 1])
    for before, time in ((0.75, 0.5), (1.0, 0.75)):
        rest = (np.asarray(x[t == time])[:, 0] - (1 - time) * (2 + before)) / time
        assert stats.kstest(rest, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(rest, noise[t == time][:, 0])[0, 1]) < 0.05  # fresh
