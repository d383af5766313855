"""A stand-in for pretrained networks of pictures: a matrix."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation.features.networks import FeatureNetwork
from genjax.data import Dataset, InMemory, to_float
from genjax.models.encoders.vgg16 import VGG16

WIDTH, SHAPE = 5, (4, 4, 1)
MATRIX = np.random.default_rng(7).normal(size=(16, WIDTH))


def features_and_logits(images):
    """Return features and logits of bytes, in float64."""
    pixels = images.reshape(len(images), -1) / 127.5 - 1
    features = pixels @ MATRIX
    return features, 3 * features


def network_of(**changes):
    """Return the same as a network, in float32."""
    matrix = jnp.asarray(MATRIX, jnp.float32)

    def apply(matrix, images):
        features = to_float(images).reshape(len(images), -1) @ matrix
        return features, 3 * features

    fields = dict(
        description="a stand-in",
        resizing="not at all",
        weights="abc",
        variables=matrix,
        apply=apply,
    )
    return FeatureNetwork(**(fields | changes))


def maps(variables, images):
    """Return pixels in place of `experiments.evaluation.prompts._maps`, as many as those return."""
    pixels = images.reshape(len(images), -1)
    count = 2 * sum(VGG16().widths)
    return np.take(pixels, np.arange(count) % pixels.shape[1], axis=1).astype(np.float32) / 255


def not_to_be_called(*_):
    raise AssertionError("features are computed again")


def pictures(count, seed, low=0, high=256, shape=SHAPE):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(np.uint8)


def dataset_of(images, split="train"):
    return Dataset("mine", split, InMemory({"image": images}))


def random_variables(module, *inputs):
    """Return random variables, of which what is the same for all pictures is a small part."""
    shapes = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    random = np.random.default_rng(0)

    def draw(path, leaf):
        same = any(word in jax.tree_util.keystr(path) for word in ("class_", "position", "bias"))
        return (0.05 if same else 1.0) * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, shapes)
