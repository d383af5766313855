"""Learned inverses: on linear Gaussian models, where the inverse is known, and by the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from genjax.adversarial import (
    encoder_losses,
    gradient_penalty,
    hinge,
    joint_discriminator_loss,
    joint_generator_loss,
    least_squares,
    non_saturating,
    relativistic,
    saturating,
    square_distance,
    value,
    wasserstein,
)

TOY_STEPS = 4000
MATRICES = {"1-D": np.array([[-1.7]]), "2-D": np.array([[1.2, 0.5], [-0.4, 0.8]])}


def whitened(seed, size, count=64):
    """Normal numbers whose sample mean is exactly 0 and whose sample covariance is exactly I."""
    z = np.random.default_rng(seed).standard_normal((count, size))
    z -= z.mean(0)
    return z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / count)).T


def train_linear(objective, matrix, train_generator):
    """Train x = B z, z = C x and a discriminator that is quadratic in (x, z); return B and C.

    The data are x = A z. This discriminator sees second moments alone. They are equal only if C is
    the inverse of B, and B·Bᵀ = A·Aᵀ.
    """
    size = len(matrix)
    x, z = jnp.asarray(whitened(0, size) @ matrix.T), jnp.asarray(whitened(1, size))

    def score(w, pair):
        v = jnp.concatenate(pair, axis=1)
        return jnp.einsum("bi,ij,bj->b", v, w, v)[:, None]

    def pairs(maps):
        b, c = maps if train_generator else (jnp.asarray(matrix), maps[1])
        return (x, x @ c.T), (z @ b.T, z)

    def loss_of_discriminator(w, maps):
        real, fake = pairs(maps)
        loss = joint_discriminator_loss(objective, score(w, real), score(w, fake)).mean()
        critic = lambda pair: score(w, pair)[:, 0]
        return loss + 0.1 * (gradient_penalty(critic, real) + gradient_penalty(critic, fake)).mean()

    def loss_of_maps(maps, w):
        return joint_generator_loss(objective, *(score(w, pair) for pair in pairs(maps))).mean()

    optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, TOY_STEPS, 0.1))

    def step(carry, _):
        w, maps, states = carry
        updates, of_w = optimizer.update(jax.grad(loss_of_discriminator)(w, maps), states[0])
        w = optax.apply_updates(w, updates)
        updates, of_maps = optimizer.update(jax.grad(loss_of_maps)(maps, w), states[1])
        return (w, optax.apply_updates(maps, updates), (of_w, of_maps)), None

    start = jnp.zeros((2 * size, 2 * size)), (0.5 * jnp.eye(size), 0.3 * jnp.eye(size))
    carry = *start, tuple(map(optimizer.init, start))
    (_, (b, c), _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=TOY_STEPS))(carry)
    return b, c


@pytest.mark.parametrize("objective", [non_saturating, relativistic])
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_joint_training_reaches_the_exact_inverse_of_a_linear_generator(objective, matrix, float64):
    """With the generator x = A z held fixed, the Jacobian of the encoder is A⁻¹."""
    _, c = train_linear(objective, matrix, train_generator=False)
    np.testing.assert_allclose(c, np.linalg.inv(matrix), atol=1e-4)
    z = whitened(2, len(matrix))
    np.testing.assert_allclose(z @ matrix.T @ c.T, z, atol=1e-3)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_generator_and_encoder_trained_together_are_inverses(matrix, float64):
    """The generator is A up to a rotation of z, which the data cannot tell."""
    b, c = train_linear(non_saturating, matrix, train_generator=True)
    np.testing.assert_allclose(c @ b, np.eye(len(matrix)), atol=1e-4)
    np.testing.assert_allclose(b @ b.T, matrix @ matrix.T, atol=1e-4)


def joint_laws(slope, noise):
    """The law of (x, E(x)), x ~ N(0, 1.5²), and that of (0.8 z + 0.6 ε, z), z ~ N(0, 1)."""
    real = 1.5**2 * np.array([[1, slope], [slope, slope**2]]) + np.diag([0, noise**2])
    fake = np.array([[0.8**2 + 0.6**2, 0.8], [0.8, 1]])
    return multivariate_normal(np.zeros(2), real), multivariate_normal(np.zeros(2), fake)


def test_the_best_discriminator_of_pairs_is_the_log_ratio_of_their_densities(float64):
    """Among all quadratic functions of (x, z), by minimization, for a noisy linear encoder.

    Its value is −log 4 + 2·JSD of the joint laws (BiGAN, propositions 1 and 2).
    """
    p, q = joint_laws(0.5, 0.7)
    line = np.linspace(-11, 11, 89)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    masses = [law.pdf(grid) / law.pdf(grid).sum() for law in (p, q)]
    features = np.stack([np.ones(len(grid)), grid[:, 0] ** 2, grid.prod(1), grid[:, 1] ** 2], 1)

    def loss(weights):
        scores, still = (features @ weights)[:, None], jnp.zeros((len(grid), 1))
        # The loss is a sum of one of the real and one of the generated score.
        of_real = joint_discriminator_loss(non_saturating, scores, still) - np.log(2)
        of_fake = joint_discriminator_loss(non_saturating, still, scores) - np.log(2)
        return masses[0] @ of_real + masses[1] @ of_fake

    found = minimize(
        jax.jit(jax.value_and_grad(loss)), np.zeros(4), jac=True, options=dict(gtol=1e-10)
    )
    precision = np.linalg.inv(q.cov) - np.linalg.inv(p.cov)
    constant = np.log(np.linalg.det(q.cov) / np.linalg.det(p.cov)) / 2
    expected = [constant, precision[0, 0] / 2, precision[0, 1], precision[1, 1] / 2]
    np.testing.assert_allclose(found.x, expected, atol=1e-5)
    ratio = p.logpdf(grid) - q.logpdf(grid)
    np.testing.assert_allclose(features @ found.x, ratio, atol=1e-3)
    middle = np.log((masses[0] + masses[1]) / 2)
    divergence = sum(m @ (np.log(m) - middle) for m in masses) / 2
    np.testing.assert_allclose(-found.fun, -np.log(4) + 2 * divergence, atol=1e-8)


def test_terms_that_say_nothing_leave_bigan_with_the_hinge_loss():
    """Two scores that are 0 cost 1 each, of real and of generated pairs; nothing else changes."""
    real, fake = jnp.array([2.0, -0.3, 0.4]), jnp.array([-3.0, 0.5, -0.9])
    pad = lambda scores: jnp.pad(scores[:, None], ((0, 0), (2, 0)))
    three = joint_discriminator_loss(hinge, pad(real), pad(fake))
    np.testing.assert_allclose(three - 4, hinge.discriminator(real, fake), rtol=1e-6)
    np.testing.assert_allclose(joint_generator_loss(hinge, pad(real), pad(fake)), real - fake)
    gradients = [
        jax.grad(lambda *scores, loss=loss: loss(*scores).sum(), (0, 1))(real, fake)
        for loss in (
            lambda *scores: joint_discriminator_loss(hinge, *map(pad, scores)),
            hinge.discriminator,
        )
    ]
    np.testing.assert_array_equal(*gradients)


def test_bigbigans_losses_are_as_published():
    """ℓ_D = Σ h(y·s) and ℓ_EG = Σ y·s, with h(t) = max(0, 1 − t), y = 1 for real and −1 else."""
    real, fake = (np.random.default_rng(i).normal(size=(6, 3)).astype("f") for i in (0, 1))
    h = lambda t: np.maximum(0, 1 - t)
    found = joint_discriminator_loss(hinge, *map(jnp.asarray, (real, fake)))
    np.testing.assert_allclose(found, (h(real) + h(-fake)).sum(1), rtol=1e-5)
    found = joint_generator_loss(hinge, *map(jnp.asarray, (real, fake)))
    np.testing.assert_allclose(found, (real - fake).sum(1), rtol=1e-5, atol=1e-6)


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (saturating, lambda real, fake: value(real, fake)),
        (non_saturating, lambda real, fake: softplus(-fake) + softplus(real)),  # swapped labels
        (least_squares, lambda real, fake: ((fake - 1) ** 2 + real**2) / 2),
        (wasserstein, lambda real, fake: real - fake),
        (relativistic, lambda real, fake: 2 * softplus(real - fake)),
    ],
    ids=["saturating", "non_saturating", "least_squares", "wasserstein", "relativistic"],
)
def test_the_encoder_makes_real_pairs_look_generated(objective, expected):
    real, fake = jnp.array([2.0, -0.3, 0.4]), jnp.array([-3.0, 0.5, -0.9])
    found = joint_generator_loss(objective, real[:, None], fake[:, None])
    np.testing.assert_allclose(found, expected(real, fake), rtol=1e-5)


def test_the_losses_of_an_encoder_vanish_with_their_gradient_at_the_exact_inverse(float64):
    """The generator is linear. Elsewhere the losses are E‖(C·A − I)z‖² and E‖(A·C − I)x‖²."""
    matrix = MATRICES["2-D"]
    z, x = whitened(0, 2), whitened(1, 2)

    def losses(c):
        maps = lambda x: x @ c.T, lambda z: z @ matrix.T
        return encoder_losses(*maps, jnp.asarray(z), jnp.asarray(x), square_distance)

    def total(c):
        return losses(c).latents.mean() + losses(c).images.mean()

    inverse = jnp.asarray(np.linalg.inv(matrix))
    np.testing.assert_allclose(total(inverse), 0, atol=1e-25)
    np.testing.assert_allclose(jax.grad(total)(inverse), 0, atol=1e-13)
    other = inverse + jnp.array([[0.1, 0.2], [0.0, -0.3]])
    for error, found in (
        (other @ matrix - np.eye(2), losses(other).latents),
        (matrix @ other - np.eye(2), losses(other).images),
    ):
        # z and x have the covariance I exactly.
        np.testing.assert_allclose(found.mean(), np.square(error).sum() / 2, rtol=1e-12)
    assert jnp.abs(jax.grad(total)(other)).min() > 1e-3
    np.testing.assert_allclose(losses(other).reconstructions, x @ other.T @ matrix.T, rtol=1e-12)


def test_an_encoder_learns_nothing_through_the_generated_images():
    """The images of its lesson are given: a generator that follows it has no say in E(G(z)) − z."""
    z = jnp.ones((3, 2))

    def loss(scale):
        generate = lambda z: scale * z
        found = encoder_losses(lambda x: x, generate, z, z, square_distance)
        return found.latents.sum()

    assert jax.grad(loss)(2.0) == 0


def test_a_penalty_of_pairs_is_the_sum_over_their_parts():
    x, z = jnp.ones((4, 2, 3)), jnp.ones((4, 5))
    critic = lambda pair: 2 * pair[0].sum((1, 2)) + jnp.square(pair[1]).sum(1)
    np.testing.assert_allclose(gradient_penalty(critic, (x, z)), 6 * 4 + 5 * 4)
    alone = functools.partial(gradient_penalty, lambda x: 2 * x.sum((1, 2)))
    np.testing.assert_allclose(alone(x), 24)
