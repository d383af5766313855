"""Inception-v3, the network of FID (Szegedy et al. 2016).

"Rethinking the Inception architecture for computer vision"."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn.resize import bilinear, corner_bilinear, eight_bit_colours, resize

Dtype = Any
LEAST_SIDE = 75  # of which one pixel remains
Pool = Callable[[Array], Array]
halve: Pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
max_of_nine: Pool = functools.partial(
    nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME"
)
mean_of_nine: Pool = functools.partial(
    nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME"
)
# The mean over the pixels inside the image, without padding.
mean_of_pixels: Pool = functools.partial(mean_of_nine, count_include_pad=False)


class Conv(NamedTuple):
    """The sizes of a convolution."""

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


# Consecutive layers; an inner list holds parallel layers.
Layers = Sequence[Conv | Pool | Sequence[Conv]]
cross = lambda features: [Conv(features, (1, 3)), Conv(features, (3, 1))]
reduction = lambda features: Conv(features, (3, 3), 2, "VALID")


def block_a(pool: Pool, pool_features: int) -> dict[str, Layers]:
    """Return the branches of the modules at 35×35."""
    return {
        "branch1x1": [Conv(64)],
        "branch5x5": [Conv(48), Conv(64, (5, 5))],
        "branch3x3dbl": [Conv(64), Conv(96, (3, 3)), Conv(96, (3, 3))],
        "branch_pool": [pool, Conv(pool_features)],
    }


def block_b() -> dict[str, Layers]:
    """Return the branches that reduce 35×35 to 17×17 (figure 10)."""
    return {
        "branch3x3": [reduction(384)],
        "branch3x3dbl": [Conv(64), Conv(96, (3, 3)), reduction(96)],
        "branch_pool": [halve],
    }


def block_c(pool: Pool, width: int) -> dict[str, Layers]:
    """Return the branches of the modules at 17×17, with factorized 7×7 convolutions (figure 6)."""
    row, column = Conv(width, (1, 7)), Conv(width, (7, 1))
    return {
        "branch1x1": [Conv(192)],
        "branch7x7": [Conv(width), row, Conv(192, (7, 1))],
        "branch7x7dbl": [Conv(width), column, row, column, Conv(192, (1, 7))],
        "branch_pool": [pool, Conv(192)],
    }


def block_d() -> dict[str, Layers]:
    """Return the branches that reduce 17×17 to 8×8."""
    return {
        "branch3x3": [Conv(192), reduction(320)],
        "branch7x7x3": [Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), reduction(192)],
        "branch_pool": [halve],
    }


def block_e(pool: Pool) -> dict[str, Layers]:
    """Return the branches of the modules at 8×8 (figure 7)."""
    return {
        "branch1x1": [Conv(320)],
        "branch3x3": [Conv(384), cross(384)],
        "branch3x3dbl": [Conv(448), Conv(384, (3, 3)), cross(384)],
        "branch_pool": [pool, Conv(192)],
    }


def network(mean: Pool, last: Pool) -> dict[str, Conv | Pool | dict[str, Layers]]:
    """Return all layers except the classifier, with the names of the published weights."""
    return {
        "Conv2d_1a_3x3": Conv(32, (3, 3), 2, "VALID"),
        "Conv2d_2a_3x3": Conv(32, (3, 3), 1, "VALID"),
        "Conv2d_2b_3x3": Conv(64, (3, 3)),
        "maxpool1": halve,
        "Conv2d_3b_1x1": Conv(80),
        "Conv2d_4a_3x3": Conv(192, (3, 3), 1, "VALID"),
        "maxpool2": halve,
        "Mixed_5b": block_a(mean, 32),
        "Mixed_5c": block_a(mean, 64),
        "Mixed_5d": block_a(mean, 64),
        "Mixed_6a": block_b(),
        "Mixed_6b": block_c(mean, 128),
        "Mixed_6c": block_c(mean, 160),
        "Mixed_6d": block_c(mean, 160),
        "Mixed_6e": block_c(mean, 192),
        "Mixed_7a": block_d(),
        "Mixed_7b": block_e(mean),
        "Mixed_7c": block_e(last),
    }


class ConvNorm(nn.Module):
    """A convolution, normalisation by stored statistics, and a rectifier."""

    conv: Conv
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        features, kernel_size, stride, padding = self.conv
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = nn.Conv(features, kernel_size, stride, padding, use_bias=False, name="conv", **types)(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn", **types)(x)
        return nn.relu(x)


class Branches(nn.Module):
    """Parallel sequences of layers whose outputs are concatenated."""

    branches: Mapping[str, Layers]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        conv = lambda layer, name: ConvNorm(layer, self.dtype, self.param_dtype, name=name)
        outputs = []
        for name, layers in self.branches.items():
            h, several, number = x, sum(not callable(layer) for layer in layers) > 1, 0
            for layer in layers:
                if callable(layer):
                    h = layer(h)
                    continue
                number += 1
                stem = f"{name}_{number}" if several else name
                if isinstance(layer, Conv):
                    h = conv(layer, stem)(h)
                else:
                    parts = [
                        conv(part, stem + letter)(h)
                        for part, letter in zip(layer, "ab", strict=True)
                    ]
                    h = jnp.concatenate(parts, axis=-1)
            outputs.append(h)
        return jnp.concatenate(outputs, axis=-1)


class Inception(nn.Module):
    """Inception-v3: images in [−1, 1] to 2,048 features and to logits of classes.

    Images have 299×299 pixels, and at least 75×75.

    Attributes:
        num_classes: 1,008 in the network of FID, of which 1,000 are used.
        fid: whether to build the network of FID, TensorFlow's of 2015-12-05, or torchvision's. The
            network of FID averages 3×3 pixels over those inside the image, and its last pooling is
            a maximum.
        dtype: type of everything except the results.
    """

    num_classes: int = 1008
    fid: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch 2048"], Float[Array, "batch classes"]]:
        """Return features and logits.

        Raises:
            ValueError: a side is smaller than 75 pixels, so that the last maps are empty.
        """
        if min(images.shape[1:3]) < LEAST_SIDE:
            raise ValueError(
                f"images have shape {images.shape}; Inception takes sides of {LEAST_SIDE} pixels "
                "or more: resize them, as preprocess does"
            )
        x = images.astype(self.dtype)
        layers = (
            network(mean_of_pixels, max_of_nine)
            if self.fid
            else network(mean_of_nine, mean_of_nine)
        )
        for name, layer in layers.items():
            if callable(layer):
                x = layer(x)
            else:
                kind = ConvNorm if isinstance(layer, Conv) else Branches
                x = kind(layer, self.dtype, self.param_dtype, name=name)(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        dense = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="fc"
        )
        return features, dense(features)


def preprocess(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 299 299 3"]:
    """Preprocess images in [−1, 1] for the network of FID (Heusel et al. 2017).

    Images of 1 or 3 channels are rounded to 8 bits, like pictures in files, and resized to 299×299
    by TensorFlow 1's bilinear interpolation (`corner_bilinear`). Values v in 0 … 255 become (v −
    128)/128. torch-fidelity does the same, and clean-fid in its mode `legacy_tensorflow`.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    return (resize(eight_bit_colours(images), 299, 299, corner_bilinear) - 128) / 128


def preprocess_clean(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 299 299 3"]:
    """Preprocess images in [−1, 1] as clean-fid does (Parmar, Zhang & Zhu 2022).

    The interpolation is Pillow's antialiased bicubic one. Values are clipped to 0 … 255 and not
    rounded after; v becomes (v − 128)/128.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    resized = jax.image.resize(eight_bit_colours(images), (len(images), 299, 299, 3), "cubic")
    return (resized.clip(0, 255) - 128) / 128


def preprocess_pytorch(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 299 299 3"]:
    """Preprocess images in [−1, 1] as pytorch-fid does, and clean-fid's mode `legacy_pytorch`.

    The interpolation is PyTorch's bilinear one, without antialiasing; v becomes 2·v/255 − 1.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    return 2 * resize(eight_bit_colours(images), 299, 299, bilinear) / 255 - 1


def inception_features(
    variables: Any,
    images: Float[Array, "batch height width channels"],
    preprocess: Callable[[Array], Array] = preprocess,
) -> tuple[Float[Array, "batch 2048"], Float[Array, "batch 1008"]]:
    """Compute the features and logits that metrics use, from images in [−1, 1].

    Args:
        variables: the weights of FID (`genjax.pretrained.inception.load`).
        preprocess: `preprocess`, `preprocess_clean` or `preprocess_pytorch`. FIDs of different
            preprocessing are different measures.

    Returns:
        The features, whose Fréchet distance is the FID (Heusel et al. 2017), and the logits of the
        Inception score (Salimans et al. 2016). The score's released code has no bias in the logits.
    """
    # Full precision, so that a distance does not depend on the device.
    with jax.default_matmul_precision("highest"):
        features, logits = Inception().apply(variables, preprocess(images))
    return features, logits - variables["params"]["fc"]["bias"]
