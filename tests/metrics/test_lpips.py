"""LPIPS without its weights.

tests/parity and tests/pretrained compare with the authors' numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics.lpips import LPIPS
from genjax.models.encoders.vgg16 import VGG16

WIDTHS = (3, 2, 3, 2, 4)
MODULE = LPIPS(WIDTHS)


def images(seed):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (3, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    """Random: those of the linear layers positive, as the published ones are."""
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), images(0), images(1))
    generator = np.random.default_rng(2)

    def draw(leaf):
        if leaf.ndim == 1:
            return generator.uniform(0.05, 0.3, leaf.shape).astype(np.float32)
        return generator.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(
            np.float32
        )

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_distance_is_that_of_the_equation(variables, dtype):
    """In float64, position by position, from the network's features, which have their own tests."""
    params = variables["params"]
    distances = jax.jit(LPIPS(WIDTHS, dtype).apply)(variables, images(0), images(1))
    network = jax.jit(VGG16(WIDTHS, dtype).apply)
    features = [network({"params": params["vgg16"]}, images(seed)) for seed in (0, 1)]
    expected = np.zeros(3)
    for stage, pair in enumerate(zip(*features, strict=True), 1):
        a, b = (np.asarray(m, np.float64) for m in pair)
        for example, row, column in np.ndindex(a.shape[:3]):
            unit = lambda vector: vector / (np.linalg.norm(vector) + 1e-10)
            difference = unit(a[example, row, column]) - unit(b[example, row, column])
            weighted = np.sum(params[f"linear{stage}"] * difference**2)
            expected[example] += weighted / (a.shape[1] * a.shape[2])
    assert expected.min() > 0.01 and distances.dtype == jnp.float32
    # float32 after the features: where differences nearly cancel, rounding errors of 1e-7 count
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_it_is_symmetric_and_nothing_for_equal_images(variables):
    distance, x, y = jax.jit(MODULE.apply), images(0), images(1)
    np.testing.assert_allclose(distance(variables, x, y), distance(variables, y, x), rtol=1e-6)
    # squares of the roundings of unit vectors, 1e-7, by which two calls of one network may differ
    np.testing.assert_allclose(distance(variables, x, x), np.zeros(3), atol=1e-12)


def test_gradients_are_finite_where_all_features_are_zero(variables):
    """As of plain colours they may be: the length of a vector of zeros has no derivative."""
    silent = jax.tree.map(lambda leaf: leaf, variables)
    silent["params"]["vgg16"]["conv1_2"]["bias"] = np.full(3, -100, np.float32)
    gradient = jax.jit(jax.grad(lambda x, variables: MODULE.apply(variables, x, images(1)).sum()))
    np.testing.assert_array_equal(gradient(images(0), silent), np.zeros((3, 16, 16, 3)))
    assert np.abs(gradient(images(0), variables)).max() > 1e-4
