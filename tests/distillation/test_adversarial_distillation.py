"""The discriminator sees both kinds of examples at one noise level; only it learns by its loss."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.adversarial.objectives import non_saturating
from genjax.diffusion import RectifiedFlow
from genjax.distillation.adversarial import discriminator_loss, generator_loss

KEY = jax.random.key(0)
FLOW = RectifiedFlow()
REAL, FAKE = jnp.full((6, 3), 2.0), jnp.full((6, 3), -1.0)
constant = lambda t: lambda process, u: jnp.full_like(u, t)
mean = lambda x, t: x.mean(1)


def test_without_noise_the_losses_are_those_of_the_objective():
    options = dict(process=FLOW, times=constant(0.0), objective=non_saturating)
    loss = discriminator_loss(KEY, mean, REAL, FAKE, **options)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)), rtol=1e-6)
    loss = generator_loss(KEY, mean, REAL, FAKE, **options)
    np.testing.assert_allclose(loss, np.log1p(np.exp(1)), rtol=1e-6)


def test_at_the_noise_end_examples_cannot_be_told_apart():
    seen = []

    def discriminator(x, t, label):
        seen.append((x, t))
        return x[:, 0]

    discriminator_loss(
        KEY, discriminator, REAL, FAKE, jnp.arange(6), process=FLOW, times=constant(1.0)
    )
    (real, t), (fake, s) = seen
    np.testing.assert_array_equal(t, s)
    again = []
    discriminator_loss(
        KEY,
        lambda x, t: (again.append(x), x[:, 0])[1],
        REAL + 5,
        FAKE - 5,
        process=FLOW,
        times=constant(1.0),
    )
    np.testing.assert_array_equal(again[0], real)  # noise alone
    assert np.abs(real - fake).min() > 0  # of each its own


def test_the_gradient_reaches_samples_through_the_students_loss_alone():
    options = dict(process=FLOW, times=constant(0.5))
    of_discriminator = lambda fake: discriminator_loss(KEY, mean, REAL, fake, **options).sum()
    of_student = lambda fake: generator_loss(KEY, mean, REAL, fake, **options).sum()
    np.testing.assert_array_equal(jax.grad(of_discriminator)(FAKE), 0)
    np.testing.assert_allclose(jax.grad(of_student)(FAKE), -0.5 / 3, rtol=1e-6)  # −alpha·∂mean
