"""LPIPS, the learned perceptual image patch similarity (Zhang et al. 2018), version 0.1, on VGG16."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.encoders.vgg16 import VGG16

Dtype = Any
Images = Float[Array, "batch height width channels"]


class LPIPS(nn.Module):
    """`lpips.apply(variables, x, y)`: the distance of each pair of images in [−1, 1].

        d(x, y) = Σ over stages of the mean over positions of  weights · (x̂ − ŷ)²

    where x̂ are the features of one of VGG16's stages, at each position of unit length over the channels
    (equation 1). The variables are published ones, from `genjax.pretrained.lpips.load_lpips`; hand them to a
    compiled function as an argument. The distance is differentiable in both images: gradients by one alone
    cost one backward pass. Feed images of one channel as they are, grey for all three colours.

    The published figures are of float32. On accelerators whose convolutions round more by default, measure
    under `jax.default_matmul_precision("highest")`.

    Attributes:
        widths: of VGG16's stages.
        dtype: of VGG16's convolutions; normalisation and sums are float32 always.
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
        """
        Raises:
            ValueError: neither 1 nor 3 channels, or a side of less than 16 pixels.
        """
        distances = [
            jnp.mean(jnp.sum(weights * (_unit(a) - _unit(b)) ** 2, axis=-1), axis=(1, 2))
            for weights, a, b in zip(self.linear, self.vgg16(x), self.vgg16(y), strict=True)
        ]
        return sum(distances)


def _unit(features: Images) -> Images:
    """Of unit length over the channels. Where all are 0 they stay so, and gradients 0, not a root's NaN."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-20)
