import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from genjax.adversarial import (
    closed_form_directions,
    invert,
    lerp,
    mix_styles,
    perceptual_path_length,
    principal_directions,
    walk,
)
from genjax.adversarial.latents import square_distance
from genjax.diffusion import slerp
from tests.products import precisions


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def test_directions_are_not_rounded_on_tpus():
    """The mean of the latents would not cancel, and become a part of all principal directions."""
    latents, kernels = jnp.zeros((6, 3)), [jnp.zeros((3, 4))]
    assert set(precisions(principal_directions, latents)) == {"HIGHEST"}
    assert set(precisions(closed_form_directions, kernels)) == {"HIGHEST"}


@pytest.mark.parametrize("interpolation", [lerp, slerp])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_walk(float64, interpolation, shape):
    stops = normal(0, 4, *shape)
    points = jax.jit(lambda stops: walk(stops, 5, interpolation))(stops)
    assert points.shape == (16, *shape)
    np.testing.assert_allclose(points[::5], stops, atol=1e-14)
    if interpolation is lerp:
        np.testing.assert_allclose(points[7], 0.6 * stops[1] + 0.4 * stops[2], rtol=1e-12)
    else:
        a, b = (np.ravel(stop) for stop in stops[1:3])
        theta = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        expected = (np.sin(0.6 * theta) * a + np.sin(0.4 * theta) * b) / np.sin(theta)
        np.testing.assert_allclose(points[7].ravel(), expected, rtol=1e-9)


def test_walk_on_the_sphere_stays_on_it(float64):
    stops = normal(0, 3, 20)
    stops *= 4 / jnp.linalg.norm(stops, axis=1, keepdims=True)
    arc = jax.jit(lambda stops: walk(stops, 8, slerp))(stops)
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 4, rtol=1e-12)
    assert np.linalg.norm(walk(stops, 8), axis=1).min() < 3.2  # a straight line leaves the sphere


def test_mix_styles():
    coarse, fine = normal(0, 2, 5, 3), normal(1, 2, 5, 3)
    mixed = mix_styles(coarse, fine, 2)
    np.testing.assert_array_equal(mixed[:, :2], coarse[:, :2])
    np.testing.assert_array_equal(mixed[:, 2:], fine[:, 2:])
    np.testing.assert_array_equal(mix_styles(coarse, fine, 0), fine)
    np.testing.assert_array_equal(mix_styles(coarse, fine, 5), coarse)


def test_closed_form_directions_are_singular_vectors(float64):
    """They are those of the kernels side by side, with columns of length 1.

    The authors' program does the same.
    """
    kernels = [normal(0, 6, 9), 5 * normal(1, 6, 4)]
    directions, values = closed_form_directions(kernels)
    joined = np.concatenate(kernels, axis=1)
    joined /= np.sqrt(np.sum(joined**2, axis=0))
    left, singular, _ = np.linalg.svd(joined)
    np.testing.assert_allclose(values, singular**2, rtol=1e-10)
    np.testing.assert_allclose(np.abs(directions @ left), np.eye(6), atol=1e-9)  # up to the sign
    # A step along each direction changes the styles by the root of its value.
    np.testing.assert_allclose(np.sum((directions @ joined) ** 2, axis=1), values, rtol=1e-10)
    # The lengths of the kernels' columns do not matter.
    np.testing.assert_allclose(
        closed_form_directions([kernels[0], kernels[1] / 7])[1], values, rtol=1e-10
    )
    # Columns of 0 change no style: StyleGAN3's input layer starts with them.
    with_zeros = closed_form_directions([*kernels, jnp.zeros((6, 4))])[1]
    np.testing.assert_allclose(with_zeros, values, rtol=1e-10)


def same_up_to_sign(found, expected):
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1, atol=1e-9)


def test_a_few_samples_have_one_direction_fewer():
    """Centred samples have that rank. Their mean would be one more direction."""
    w = normal(0, 4, 8) + 3
    directions, variances = principal_directions(w)
    expected = PCA(3).fit(np.asarray(w))
    np.testing.assert_allclose(variances, expected.explained_variance_, rtol=1e-4)  # float32
    cosines = np.sum(directions * expected.components_, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-4)


def test_principal_directions_of_w_are_principal_components(float64):
    w = normal(0, 200, 5) @ normal(1, 5, 5) + normal(2, 5)
    directions, variances = jax.jit(principal_directions)(w)
    expected = PCA().fit(w)
    np.testing.assert_allclose(variances, expected.explained_variance_, rtol=1e-9)
    same_up_to_sign(directions, expected.components_)


@pytest.mark.parametrize("units", [3, 9])
def test_principal_directions_of_z_are_those_that_a_linear_layer_maps_to_them(float64, units):
    """They are the layer's right singular vectors, because the covariance of z is I.

    Their variances are the squared singular values.
    """
    z = normal(0, 500, 5)
    z = np.linalg.qr(z - z.mean(axis=0))[0] * np.sqrt(499)
    layer = normal(1, 5, units)
    directions, variances = principal_directions(jnp.asarray(z), z @ layer + 7.0)
    left, singular, _ = np.linalg.svd(layer, full_matrices=False)
    np.testing.assert_allclose(variances, singular**2, rtol=1e-9)
    same_up_to_sign(directions, left.T)


def test_inversion_of_linear_generator_is_least_squares(float64):
    """The generator can make some of the images and not others, one by one or together."""
    matrix = normal(0, 12, 4)
    generate = lambda latents: (latents @ matrix.T).reshape(-1, 2, 2, 3)
    truth = normal(1, 2, 4)
    images = jnp.concatenate([generate(truth), normal(2, 2, 2, 2, 3)])
    found = invert(generate, images, jnp.zeros((4, 4)), 400)
    expected = np.linalg.lstsq(matrix, images.reshape(4, -1).T)[0].T
    # 400 steps of Adam reach this accuracy.
    np.testing.assert_allclose(found.latents, expected, atol=1e-4)
    np.testing.assert_allclose(found.latents[:2], truth, atol=1e-4)

    assert found.distances.shape == (400, 4)
    np.testing.assert_allclose(
        found.distances[0], np.mean(np.square(images), axis=(1, 2, 3)), rtol=1e-12
    )
    residual = np.mean(np.square(expected @ matrix.T - images.reshape(4, -1)), axis=1)
    np.testing.assert_allclose(found.distances[-1], residual, rtol=1e-6, atol=1e-7)
    # It reaches the least within a quarter of the steps. Adam then oscillates by less than 1e-4.
    excess = found.distances - residual
    quarters = np.max(excess.reshape(4, 100, 4), axis=1)
    assert np.all(quarters[0] > 0.04) and np.all(quarters[1:] < 1e-4)
    assert np.all(excess > -1e-12)

    alone = invert(generate, images[2:3], jnp.zeros((1, 4)), 400)
    np.testing.assert_allclose(alone.latents[0], found.latents[2], atol=1e-9)


def test_inversion_takes_any_tree_of_latents_and_any_distance(float64):
    images = normal(0, 3, 2, 5)
    generate = lambda latents: latents["w"] + latents["shift"]
    start = {"w": jnp.zeros((3, 2, 5)), "shift": jnp.zeros((3, 1, 1))}
    absolute = lambda generated, images: jnp.sqrt(square_distance(generated, images) + 1e-12)
    found = invert(generate, images, start, 300, distance=absolute)
    assert found.latents.keys() == start.keys()
    np.testing.assert_allclose(generate(found.latents), images, atol=1e-2)


def test_inversion_schedule(float64):
    """With a constant gradient Adam steps by the learning rate itself, so distances fall by it.

    The schedule is in float32, which loses a digit or two of 1 − cos near its end.
    """
    total = lambda generated, images: generated.sum(axis=1)
    found = invert(
        lambda w: w, jnp.zeros((1, 1)), jnp.zeros((1, 1)), 100, learning_rate=0.2, distance=total
    )
    rates = -np.diff(found.distances[:, 0])
    np.testing.assert_allclose(rates[:6], 0.2 * np.array([1, 2, 3, 4, 5, 5]) / 5, rtol=1e-6)
    np.testing.assert_allclose(rates[5:76], 0.2, rtol=1e-6)
    np.testing.assert_allclose(
        rates[75:], 0.1 + 0.1 * np.cos(np.pi * np.arange(24) / 25), rtol=1e-5
    )


def test_path_length_of_linear_generator(float64):
    """It is ‖A(b − a)‖²/pixels for every t. float64 keeps 12 digits of a difference of 1e-4."""
    matrix, start, end = normal(0, 12, 4), normal(1, 6, 4), normal(2, 6, 4)
    generate = lambda latents: (latents @ matrix.T).reshape(-1, 2, 2, 3)
    lengths = jax.jit(lambda key: perceptual_path_length(key, generate, start, end))(
        jax.random.key(0)
    )
    expected = np.sum(((end - start) @ matrix.T) ** 2, axis=1) / 12
    np.testing.assert_allclose(lengths, expected, rtol=1e-9)
    doubled = lambda a, b: 2 * square_distance(a, b)
    np.testing.assert_allclose(
        perceptual_path_length(jax.random.key(0), generate, start, end, distance=doubled),
        2 * expected,
        rtol=1e-9,
    )


def test_path_length_on_the_sphere(float64):
    """A great circle is walked at constant speed, so the identity's length is its angle squared."""
    start, end = (
        x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (normal(1, 6, 4), normal(2, 6, 4))
    )
    length = lambda key: perceptual_path_length(key, lambda z: z, start, end, interpolation=slerp)
    lengths = jax.jit(length)(jax.random.key(0))
    # A chord is shorter than its arc by a relative 1e-9, because ε = 1e-4.
    np.testing.assert_allclose(lengths, np.arccos(np.sum(start * end, axis=1)) ** 2 / 4, rtol=1e-7)


def test_path_length_is_taken_at_uniform_times_of_each_pair(float64):
    """x² from 0 to 1 has the slope 2·t.

    Its square has the mean 4/3 and the variance 16/5 − 16/9 = 64/45.
    """
    count = 4000
    lengths = perceptual_path_length(
        jax.random.key(0), jnp.square, jnp.zeros((count, 1)), jnp.ones((count, 1))
    )
    error = np.sqrt(64 / 45 / count)
    assert abs(lengths.mean() - 4 / 3) < 4 * error
    assert abs(lengths.var() - 64 / 45) < 8 * error  # one t for all pairs would make it 0
