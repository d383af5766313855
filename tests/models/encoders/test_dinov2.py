import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.dinov2 import (
    COLOUR_DEVIATION,
    COLOUR_MEAN,
    Dinov2,
    dinov2_base,
    dinov2_features,
    dinov2_giant,
    dinov2_large,
    dinov2_small,
    preprocess,
)
from tests.models.block_options import check_block_options

OPTIONS = dict(width=8, depth=2, num_heads=2, patch_size=2, image_size=6, num_registers=3)
MODULE = Dinov2(**OPTIONS)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 6, 6, 3))


@pytest.fixture(scope="module")
def variables(images):
    expected = jax.eval_shape(MODULE.init, jax.random.key(0), images)
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(0.3, 0.5, leaf.shape).astype(np.float32), expected
    )


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (dinov2_small, 22_056_576),
        (dinov2_base, 86_580_480),
        (dinov2_large, 304_368_640),
        (dinov2_giant, 1_136_480_768),
    ],
)
def test_parameter_counts(build, count):
    """Counts of the authors' models, which evaluate 16×16 patches of 37×37 trained positions."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    output, variables = jax.eval_shape(build().init_with_output, jax.random.key(0), image)
    assert sum(a.size for a in jax.tree.leaves(variables)) == count
    assert output.shape == (1, 257, build().width)


def test_masked_patches_are_not_seen(variables, images):
    apply = jax.jit(MODULE.apply)
    masked = jnp.zeros((2, 9), bool).at[:, 4].set(True)  # the middle patch
    other = images.at[:, 2:4, 2:4].set(5.0)
    np.testing.assert_array_equal(apply(variables, images, masked), apply(variables, other, masked))
    unseen = jnp.zeros((2, 9), bool)
    assert np.abs(apply(variables, images, unseen) - apply(variables, other, unseen)).max() > 0.1
    assert np.abs(apply(variables, images, unseen) - apply(variables, images, masked)).max() > 0.1


def test_sizes(variables):
    shape = lambda *sides: jax.eval_shape(MODULE.apply, variables, jnp.zeros((1, *sides, 3))).shape
    assert shape(4, 10) == (1, 1 + 3 + 10, 8)
    with pytest.raises(ValueError, match="images of 4×5 do not divide into patches of 2×2"):
        shape(4, 5)


def test_options_reach_the_blocks(variables, images):
    check_block_options(MODULE, variables, images, products=8)


def test_preprocessing():
    """The mean colour becomes 0, and one standard deviation more 1; grey has equal colours."""
    colours = jnp.stack(
        [jnp.array(COLOUR_MEAN), jnp.array(COLOUR_MEAN) + jnp.array(COLOUR_DEVIATION)]
    )
    images = jnp.broadcast_to(2 * colours[:, None, None] - 1, (2, 5, 7, 3))
    output = jax.jit(preprocess)(images)
    assert output.shape == (2, 224, 224, 3)
    # values are rounded to 8 bits
    np.testing.assert_allclose(output[0], 0, atol=0.5 / 255 / min(COLOUR_DEVIATION))
    np.testing.assert_allclose(output[1], 1, atol=0.5 / 255 / min(COLOUR_DEVIATION))
    white = jax.jit(functools.partial(preprocess, size=8))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_allclose(
        white[0, 0, 0], (1 - np.array(COLOUR_MEAN)) / np.array(COLOUR_DEVIATION), rtol=1e-5
    )
    with pytest.raises(ValueError, match="1 or 3 channels"):
        jax.eval_shape(preprocess, jnp.zeros((1, 8, 8, 2)))


def test_features(variables):
    """Every picture gives a vector, whatever its size."""
    features = functools.partial(dinov2_features, MODULE)
    assert jax.eval_shape(features, variables, jnp.zeros((3, 9, 5, 1))).shape == (3, 8)
