import functools
import re

import jax
import numpy as np
import pytest
from scipy.signal import correlate2d

from genjax.models.encoders.vgg16 import VGG16, vgg16_features

MODULE = VGG16(widths=(2, 3, 2, 4, 3))


@pytest.fixture(scope="module")
def variables():
    """Make all variables random, also biases, which start at 0."""
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)
    draw = lambda leaf: generator.normal(
        0.1, (3 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5, leaf.shape
    )
    return jax.tree.map(lambda leaf: np.asarray(draw(leaf), np.float32), shapes)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODULE.apply)


def test_features_against_sums_of_correlations(variables, apply):
    """Compute in float64, plane by plane, with ImageNet's published colours of pixels in [0, 1]."""
    image = np.random.default_rng(1).uniform(-1, 1, (18, 35, 3)).astype(np.float32)
    x = ((image.astype(np.float64) + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    maps = apply(variables, image[None])
    assert len(maps) == 5
    for stage, features in enumerate(maps, 1):
        for i in range(2 if stage < 3 else 3):
            layer = variables["params"][f"conv{stage}_{i + 1}"]
            kernel = layer["kernel"].astype(np.float64)
            planes = [
                sum(
                    correlate2d(x[..., c], kernel[..., c, o], mode="same")
                    for c in range(x.shape[-1])
                )
                for o in range(kernel.shape[-1])
            ]
            x = np.maximum(np.stack(planes, -1) + layer["bias"], 0)
        assert 0 < np.mean(x > 0) < 1  # some values are rectified
        # float32: up to thirteen convolutions with sums of at most 36 products
        np.testing.assert_allclose(features[0], x, rtol=0, atol=1e-5 * np.abs(x).max())
        if stage < 5:
            # In an odd side the last row has no partner.
            height, width = (x.shape[0] // 2, x.shape[1] // 2)
            x = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).max((1, 3))


def test_grey_images_are_all_three_colours(variables, apply):
    grey = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
    for ours, expected in zip(
        apply(variables, grey), apply(variables, grey.repeat(3, -1)), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("shape", [(1, 16, 16, 4), (1, 15, 32, 3)])
def test_images_that_it_cannot_take(variables, shape):
    with pytest.raises(ValueError, match=r"expected .* 1 or 3 channels and sides of at least 16"):
        jax.eval_shape(MODULE.apply, variables, jax.ShapeDtypeStruct(shape, np.float32))


def test_sizes_as_published():
    """Configuration D has 138,357,544 parameters, 123,642,856 of them in three dense layers."""
    images = jax.ShapeDtypeStruct((2, 70, 64, 3), np.float32)
    variables = jax.eval_shape(VGG16().init, jax.random.key(0), images)
    assert (
        sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == 138_357_544 - 123_642_856
    )
    maps = jax.eval_shape(VGG16().apply, variables, images)
    assert [m.shape[1:] for m in maps] == [
        (70, 64, 64),
        (35, 32, 128),
        (17, 16, 256),
        (8, 8, 512),
        (4, 4, 512),
    ]
    assert jax.eval_shape(vgg16_features, variables, images).shape == (2, 512)


def test_features_of_metrics_have_full_precision():
    """Accelerators round products more by default, and a distance would depend on the device."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(VGG16().init, jax.random.key(0), images)
    traced = jax.jit(vgg16_features).trace(variables, images)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo\.convolution.*", program)
    assert len(products) >= 11  # three convolutions of one shape share a function
    assert all(each.count("HIGHEST") == 2 for each in products)


def test_compute_type(variables):
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    maps = jax.eval_shape(
        functools.partial(MODULE.clone(dtype="bfloat16").apply, variables), images
    )
    assert all(m.dtype == "bfloat16" for m in maps)
