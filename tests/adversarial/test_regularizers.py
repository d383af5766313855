import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from genjax.adversarial import (
    gradient_penalty,
    interpolated_gradient_penalty,
    lazy_penalty,
    lecam,
    orthogonality,
    path_length,
    wasserstein,
)
from genjax.adversarial.regularizers import Anchors, update_anchors

SHAPE = (2, 3, 2)  # of an image


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def finite_differences(f, x, step=1e-5):
    """Return central differences of a scalar function in float64.

    They are good to step² ≈ 1e-10 and to rounding, 1e-16/step.
    """
    moves = step * jnp.eye(x.size).reshape(-1, *x.shape)
    slopes = jax.jit(jax.vmap(lambda move: (f(x + move) - f(x - move)) / (2 * step)))(moves)
    return np.asarray(slopes).reshape(x.shape)


def smooth_critic(params, images):
    """Return two layers of tanh, which have derivatives of every order."""
    return jnp.tanh(images.reshape(len(images), -1) @ params) @ jnp.linspace(-1, 2, params.shape[1])


def test_gradient_penalty_of_quadratic_critic(float64):
    """For D(x) = ½·xᵀHx + bᵀx the penalty is ‖Hx + b‖²."""
    images, bias, half = normal(0, 5, *SHAPE), normal(1, 12), normal(2, 12, 12)
    hessian = half + half.T

    def critic(x):
        x = x.reshape(len(x), -1)
        return jnp.einsum("bi,ij,bj->b", x, hessian, x) / 2 + x @ bias

    expected = [np.sum((np.asarray(hessian) @ np.ravel(x) + np.asarray(bias)) ** 2) for x in images]
    np.testing.assert_allclose(gradient_penalty(critic, images), expected, rtol=1e-12)


def test_gradient_penalty_against_finite_differences(float64):
    """Both derivatives are tested: by the images, and of the penalty by the critic's parameters."""
    images, params = normal(0, 3, *SHAPE), normal(1, 12, 4) / 2
    critic = functools.partial(smooth_critic, params)
    slopes = finite_differences(lambda x: critic(x).sum(), images)
    np.testing.assert_allclose(
        gradient_penalty(critic, images), np.sum(slopes**2, axis=(1, 2, 3)), rtol=1e-8
    )
    penalty = lambda params: gradient_penalty(
        functools.partial(smooth_critic, params), images
    ).mean()
    np.testing.assert_allclose(
        jax.jit(jax.grad(penalty))(params),
        finite_differences(penalty, params),
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("slope", [0.25, 1.0, 3.0])
def test_interpolated_penalty_of_linear_critic(float64, slope):
    direction = normal(0, *SHAPE)
    direction *= slope / jnp.linalg.norm(direction)
    penalty = interpolated_gradient_penalty(
        jax.random.key(0),
        lambda x: jnp.sum(x * direction, axis=(1, 2, 3)),
        *normal(1, 2, 4, *SHAPE),
    )
    np.testing.assert_allclose(penalty, np.full(4, (slope - 1) ** 2), rtol=1e-12, atol=1e-24)


def test_interpolated_penalty_is_taken_between_the_pairs(float64):
    """The gradient of ½‖x‖² is x, so between 0 and x its norm is the share times ‖x‖.

    Pixels of 10/√12 give ‖x‖ = 10.
    """
    real = jnp.full((2000, *SHAPE), 10 / np.sqrt(12))
    for ends in ((real, jnp.zeros_like(real)), (jnp.zeros_like(real), real)):
        penalty = interpolated_gradient_penalty(
            jax.random.key(0), lambda x: jnp.sum(x**2, axis=(1, 2, 3)) / 2, *ends
        )
        # The root cannot tell a norm below 1 from one above, so take only norms above 2.
        norms = 1 + np.sqrt(penalty)
        shares = norms[norms > 2] / 10
        assert abs(len(shares) - 1600) < 4 * np.sqrt(2000 * 0.8 * 0.2)
        # Each pair has one uniform share. With a share for each pixel, nearly all norms would be
        # 10/√3.
        assert kstest(shares, "uniform", (0.2, 0.8)).pvalue > 1e-3


def test_interpolated_penalty_against_finite_differences(float64):
    real, fake, params = normal(0, 3, *SHAPE), normal(1, 3, *SHAPE), normal(2, 12, 4) / 2
    penalty = lambda params: interpolated_gradient_penalty(
        jax.random.key(0), functools.partial(smooth_critic, params), real, fake
    ).mean()
    np.testing.assert_allclose(
        jax.jit(jax.grad(penalty))(params),
        finite_differences(penalty, params),
        rtol=1e-6,
        atol=1e-8,
    )


def test_no_slope_at_all_has_finite_gradients():
    """A constant critic has distance 1 from slope 1, and a constant synthesis has length 0.

    Nothing is divided by 0.
    """
    images = jnp.ones((2, *SHAPE))
    penalty = lambda weight: interpolated_gradient_penalty(
        jax.random.key(0), lambda x: jnp.sum(weight * x, axis=(1, 2, 3)), images, -images
    )
    np.testing.assert_array_equal(penalty(jnp.zeros(SHAPE)), [1, 1])
    gradient = jax.jit(jax.grad(lambda weight: penalty(weight).sum()))
    assert np.all(np.isfinite(gradient(jnp.zeros(SHAPE))))

    def lengths(weight):
        synthesize = lambda w: (w.sum((1, 2)) * weight)[:, None, None, None] * jnp.ones(SHAPE)
        return path_length(jax.random.key(0), synthesize, jnp.ones((2, 3, 4)), jnp.float32(0.5))[
            0
        ].sum()

    assert np.isfinite(jax.jit(jax.grad(lengths))(0.0))


STYLES, FEATURES = 3, 4
PIXELS = SHAPE[0] * SHAPE[1]  # the number of places, not of channels


def test_path_length_of_linear_synthesis(float64):
    """For G(w) = A·w the expected mean of ‖Jᵀy‖² over styles is ‖A‖²/(styles·pixels)."""
    matrix, batch = normal(0, STYLES, FEATURES, *SHAPE), 20_000
    squares, mean = path_length(
        jax.random.key(0),
        lambda w: jnp.einsum("bsf,sfhwc->bhwc", w, matrix),
        normal(1, batch, STYLES, FEATURES),
        jnp.float64(0),
        decay=0.0,  # the target stays 0, so the penalty is the squared length
    )
    assert mean == 0
    expected = np.sum(np.asarray(matrix) ** 2) / (STYLES * PIXELS)
    # Four standard errors, which are below 1 %.
    assert np.std(squares) / np.sqrt(batch) < 0.01 * expected
    assert abs(np.mean(squares) - expected) < 4 * np.std(squares) / np.sqrt(batch)


def smooth_synthesis(params, w):
    return jnp.tanh(jnp.einsum("bsf,sfhwc->bhwc", w, params))


def test_path_length_against_finite_differences(float64):
    """The lengths are those of differences of the projected images.

    The penalty's gradient by the parameters flows through the running mean too. With a fixed mean
    the two would differ by a third.
    """
    params, w, mean, decay = (
        normal(0, STYLES, FEATURES, *SHAPE) / 3,
        normal(1, 2, STYLES, FEATURES),
        0.7,
        0.4,
    )
    key = jax.random.key(0)
    y = jax.random.normal(key, (2, *SHAPE)) / np.sqrt(PIXELS)
    slopes = finite_differences(lambda w: jnp.sum(smooth_synthesis(params, w) * y), w)
    lengths = np.sqrt(np.sum(slopes**2, axis=(1, 2)) / STYLES)
    after = (1 - decay) * mean + decay * lengths.mean()
    penalty = lambda params: path_length(
        key, functools.partial(smooth_synthesis, params), w, jnp.float64(mean), decay
    )

    def backward(params):
        (penalties, after), transposed = jax.vjp(penalty, params)
        ones, zeros = jnp.ones_like(penalties), jnp.zeros_like(penalties)
        return penalties, after, *transposed((ones, 0 * after)), *transposed((zeros, 1 + 0 * after))

    penalties, found, of_penalties, of_mean = jax.jit(backward)(params)
    np.testing.assert_allclose(penalties, (lengths - after) ** 2, rtol=1e-7)
    np.testing.assert_allclose(found, after, rtol=1e-8)
    expected = finite_differences(lambda params: penalty(params)[0].sum(), params)
    np.testing.assert_allclose(of_penalties, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(of_mean, np.zeros_like(params))


def test_running_mean_tends_to_the_length(float64):
    """A synthesis of one number, G(w) = 3·w, has lengths 3·|y|, whose mean is 3·√(2/π)."""
    step = lambda mean, key: path_length(
        key, lambda w: 3 * w[:, :, :, None], jnp.ones((256, 1, 1)), mean, decay=0.05
    )[::-1]
    mean, _ = jax.lax.scan(step, jnp.float64(0), jax.random.split(jax.random.key(0), 300))
    # Lengths deviate by 1.8, and the mean is over about 39 batches of 256: four standard errors.
    np.testing.assert_allclose(mean, 3 * np.sqrt(2 / np.pi), atol=4 * 1.8 / np.sqrt(39 * 256))


def test_orthogonality_is_the_square_of_products_between_columns(float64):
    """By explicit sums over pairs of outputs of a dense layer and of a convolution."""
    dense, convolution = normal(20, 5, 3), normal(21, 3, 3, 2, 4)
    params = {
        "dense": {"kernel": dense, "bias": normal(22, 3)},
        "block": {"convolution": {"kernel": convolution}},
        "labels": {"embedding": normal(23, 4, 2)},
    }
    expected = sum(
        float(np.sum(np.asarray(kernel)[..., i] * np.asarray(kernel)[..., j])) ** 2
        for kernel in (dense, convolution)
        for i in range(kernel.shape[-1])
        for j in range(kernel.shape[-1])
        if i != j
    )
    np.testing.assert_allclose(orthogonality(params), expected, rtol=1e-12)


def test_orthogonal_columns_of_any_length_are_not_penalized(float64):
    columns = jnp.linalg.qr(normal(24, 18, 4))[0] * jnp.array([0.1, 1.0, 2.0, 5.0])
    params = {"kernel": columns.reshape(3, 3, 2, 4)}
    value, gradient = jax.value_and_grad(orthogonality)(params)
    np.testing.assert_allclose(value, 0, atol=1e-27)
    np.testing.assert_allclose(gradient["kernel"], 0, atol=1e-12)
    # Descent makes other columns orthogonal, and leaves them far from zero.
    descend = lambda w, _: (w - 0.01 * jax.grad(lambda w: orthogonality({"kernel": w}))(w), None)
    found = jax.jit(lambda w: jax.lax.scan(descend, w, length=500)[0])(normal(25, 8, 3))
    products = np.asarray(found.T @ found)
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-6)
    assert np.diag(products).min() > 1


def test_lecam():
    result = lecam(
        jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), Anchors(jnp.float32(2.0), jnp.float32(-1.0))
    )
    np.testing.assert_allclose(
        result, [(1 + 1) ** 2 + (0.5 - 2) ** 2, (-2 + 1) ** 2 + (3 - 2) ** 2], rtol=1e-6
    )


def test_lecam_measures_the_divergence_of_le_cam(float64):
    """The penalized Wasserstein critic with anchors ±α has the best gain (1 − 2λα)²/(4λ)·Δ − λα²·2.

    Here Δ = Σ (p − q)²/(p + q) and D = (1 − 2λα)/(2λ)·(p − q)/(p + q), by completing the square
    place by place.
    """
    p, q = np.random.default_rng(0).dirichlet(np.ones(9), 2)
    weight, anchor = 0.3, 0.4
    anchors = Anchors(jnp.float64(anchor), jnp.float64(-anchor))

    def loss(critic):
        real, fake = (a.ravel() for a in jnp.meshgrid(critic, critic, indexing="ij"))
        losses = wasserstein.discriminator(real, fake) + weight * lecam(real, fake, anchors)
        return jnp.sum(np.outer(p, q).ravel() * losses)

    share = 1 - 2 * weight * anchor
    best = share / (2 * weight) * (p - q) / (p + q)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(best)), 0, atol=1e-14)
    divergence = np.sum((p - q) ** 2 / (p + q))
    # Only the squares of the anchors, each α² in expectation, do not depend on p and q.
    np.testing.assert_allclose(
        -loss(best), share**2 / (4 * weight) * divergence - 2 * weight * anchor**2, rtol=1e-12
    )


def test_anchors_are_running_means_without_gradients():
    anchors, real, fake = (
        Anchors(jnp.float32(1.0), jnp.float32(-1.0)),
        jnp.array([3.0, 5.0]),
        jnp.array([0.0, -4.0]),
    )
    moved = update_anchors(anchors, real, fake, decay=0.9)
    np.testing.assert_allclose(moved, (0.9 * 1 + 0.1 * 4, -0.9 - 0.1 * 2), rtol=1e-6)
    through = jax.grad(lambda real, fake: sum(update_anchors(anchors, real, fake)), argnums=(0, 1))
    np.testing.assert_array_equal(through(real, fake), np.zeros((2, 2)))


@pytest.mark.parametrize("every", [1, 4])
def test_lazy_regularization_is_eager_in_expectation(float64, every):
    """Weighted by `every`, R1's gradient by the parameters has the same mean.

    The mean is over whole rounds, from any start.
    """
    images, params = normal(0, 3, *SHAPE), normal(1, 12, 4) / 2
    penalty = lambda params: gradient_penalty(
        functools.partial(smooth_critic, params), images
    ).mean()

    def lazy(params, step):
        return lazy_penalty(step, every, lambda: every * penalty(params), jnp.float64(0))

    gradients = jax.jit(jax.vmap(jax.grad(lazy), (None, 0)))(params, jnp.arange(3, 3 + 2 * every))
    np.testing.assert_allclose(
        gradients.mean(axis=0), jax.jit(jax.grad(penalty))(params), rtol=1e-12
    )
    due = np.arange(3, 3 + 2 * every) % every == 0
    np.testing.assert_array_equal(np.any(gradients != 0, axis=(1, 2)), due)


@pytest.mark.parametrize("under_grad", [False, True])
def test_lazy_regularization_runs_only_when_due(under_grad):
    ran = []

    def penalty(x):
        jax.debug.callback(lambda x: ran.append(float(x)), x)
        return x**2

    step_loss = lambda x, step: lazy_penalty(step, 4, lambda: penalty(x), jnp.zeros(()))
    step = jax.jit(jax.grad(step_loss) if under_grad else step_loss)
    values = [float(step(jnp.float32(3 + i), jnp.int32(i))) for i in range(10)]
    jax.effects_barrier()
    assert ran == [3, 7, 11]  # at steps 0, 4 and 8
    expected = np.zeros(10)
    expected[[0, 4, 8]] = [6, 14, 22] if under_grad else [9, 49, 121]
    np.testing.assert_array_equal(values, expected)


def test_lazy_regularization_carries_what_it_is_given():
    """An example is the running mean of path length, which does not change at other steps."""

    def penalty():
        return path_length(
            jax.random.key(0), lambda w: 3 * w[:, :, :, None], jnp.ones((4, 1, 1)), jnp.float32(2)
        )

    step = jax.jit(lambda step: lazy_penalty(step, 8, penalty, (jnp.zeros(4), jnp.float32(2))))
    penalties, mean = step(jnp.int32(3))
    assert mean == 2 and not np.any(penalties)
    for found, expected in zip(step(jnp.int32(16)), penalty(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected != 2  # the mean, which has changed
