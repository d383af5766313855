"""LPIPS, the learned perceptual image patch similarity (Zhang et al. 2018), v0.1, on VGG16."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.encoders.vgg16 import VGG16

Dtype = Any
Images = Float[Array, "batch height width channels"]


class LPIPS(nn.Module):
    """Compute the distance of each pair of images in [−1, 1]: `lpips.apply(variables, x, y)`.

        d(x, y) = Σ over stages of the mean over positions of  weights · (x̂ − ŷ)²

    where x̂ are the features of one of VGG16's stages, scaled to unit length over the channels at
    each position (equation 1). Load the published variables with
    `genjax.pretrained.lpips.load_lpips`, and pass them to a compiled function as an argument. The
    distance is differentiable in both images; the gradient by one image costs one backward pass.
    Images of one channel count as grey in all three colours.

    Published figures are computed in float32. On accelerators whose convolutions round more by
    default, measure under `jax.default_matmul_precision("highest")`.

    Attributes:
        widths: of VGG16's stages.
        dtype: of VGG16's convolutions; normalisation and sums are always float32.
    """

    widths: tuple[int, ...] = VGG16.widths
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        self.vgg16 = VGG16(self.widths, self.dtype, self.param_dtype)
        self.linear = [
            self.param(f"linear{stage}", nn.initializers.ones, (width,), self.param_dtype)
            for stage, width in enumerate(self.widths, 1)
        ]

    def __call__(self, x: Images, y: Images) -> Float[Array, " batch"]:
        """Return the distance of each pair of images.

        Raises:
            ValueError: images have neither 1 nor 3 channels, or a side of less than 16 pixels.
        """
        distances = [
            jnp.mean(jnp.sum(weights * (_unit(a) - _unit(b)) ** 2, axis=-1), axis=(1, 2))
            for weights, a, b in zip(self.linear, self.vgg16(x), self.vgg16(y), strict=True)
        ]
        return sum(distances)


def _unit(features: Images) -> Images:
    """Scale features to unit length over the channels.

    Where all channels are 0, the result and its gradient are 0 instead of NaN.
    """
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-20)
