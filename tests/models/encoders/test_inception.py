import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.inception import (
    Branches,
    Conv,
    Inception,
    halve,
    inception_features,
    max_of_nine,
    mean_of_nine,
    mean_of_pixels,
    preprocess,
)

image = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.eval_shape(Inception().init, jax.random.key(0), image)


def test_parameter_count(variables):
    """Torchvision's count without the auxiliary classifier, plus 8 classes of 2,049 parameters."""
    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    assert count == 27_161_264 - 3_326_696 + 8 * 2049


def test_shapes(variables):
    features = jax.eval_shape(inception_features, variables, jnp.zeros((3, 32, 20, 1)))
    assert [f.shape for f in features] == [(3, 2048), (3, 1008)]
    half = Inception(num_classes=5, dtype=jnp.bfloat16).init_with_output
    (features, logits), variables = jax.eval_shape(half, jax.random.key(0), image)
    assert features.dtype == logits.dtype == jnp.float32 and logits.shape == (2, 5)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_images_without_features_are_refused(variables):
    """The mean of an empty map would be NaN."""
    features, _ = jax.eval_shape(Inception().apply, variables, jnp.zeros((1, 75, 80, 3)))
    assert features.shape == (1, 2048)
    with pytest.raises(ValueError, match="Inception takes sides of 75 pixels or more"):
        jax.eval_shape(Inception().apply, variables, jnp.zeros((1, 80, 74, 3)))


@pytest.mark.parametrize(
    ("pool", "corner", "middle"),
    [(mean_of_pixels, 12 / 4, 7), (mean_of_nine, 12 / 9, 7), (max_of_nine, 6, 13)],
)
def test_pools(pool, corner, middle):
    y = pool(jnp.arange(15.0).reshape(1, 3, 5, 1))  # the corner window holds 0, 1, 5 and 6
    np.testing.assert_allclose([y[0, 0, 0, 0], y[0, 1, 2, 0]], [corner, middle], rtol=1e-6)


def test_halving_drops_what_is_left_over():
    x = jnp.arange(48.0).reshape(1, 6, 8, 1)
    np.testing.assert_array_equal(halve(x)[0, :, :, 0], [[18, 20, 22], [34, 36, 38]])


def test_branches_and_their_names():
    """Consecutive layers are numbered, and parallel layers have letters."""
    module = Branches(
        {
            "one": [max_of_nine, Conv(2)],
            "two": [Conv(3), [Conv(4, (1, 3)), Conv(5, (3, 1))]],
            "none": [max_of_nine],
        },
        jnp.float32,
        jnp.float32,
    )
    x = jnp.ones((1, 4, 4, 6))
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert output.shape == (1, 4, 4, 2 + 4 + 5 + 6)
    kernels = {name: layer["conv"]["kernel"].shape for name, layer in variables["params"].items()}
    assert kernels == {
        "one": (1, 1, 6, 2),
        "two_1": (1, 1, 6, 3),
        "two_2a": (1, 3, 3, 4),
        "two_2b": (3, 1, 3, 5),
    }


def test_preprocessing():
    """Black is −1 and white 127/128, as in TensorFlow's graph; the first corner stays in place."""
    images = jnp.full((2, 7, 9, 1), -1.0).at[1].set(1.0).at[0, 0, 0].set(0.2)
    output = jax.jit(preprocess)(images)
    assert output.shape == (2, 299, 299, 3)
    np.testing.assert_allclose(output[0, 50:, 50:], -1.0, atol=1e-6)
    np.testing.assert_allclose(output[1], 127 / 128, atol=1e-6)
    np.testing.assert_allclose(output[0, 0, 0], (153 - 128) / 128, atol=1e-6)  # 1.2·127.5 = 153
    with pytest.raises(ValueError, match="1 or 3 channels"):
        jax.eval_shape(preprocess, jnp.zeros((1, 8, 8, 2)))
