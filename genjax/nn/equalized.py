"""Layers with an equalized learning rate.

Karras et al. 2018, "Progressive growing of GANs", section 4.1.

Weights are N(0, 1) and are scaled by 1/√fan_in, He's initialisation, where they are used. Adam's
steps do not depend on the gradient's scale, so every weight moves by the same fraction of its own
size.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.nn.fir import convolve

Dtype = Any


def scaled_leaky_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return √2·leaky ReLU of slope .2, which about keeps the variance (StyleGAN2's activation)."""
    return math.sqrt(2) * jax.nn.leaky_relu(x, 0.2)


class EqualizedDense(nn.Module):
    """x·kernel·(lr_multiplier/√in_features) + bias·lr_multiplier.

    Attributes:
        initial_bias: what the bias starts from, one number or one for each feature.
        initial_scale: what the kernel's first numbers are multiplied by.
        lr_multiplier: how much slower than others the layer learns; the kernel starts as N(0,
            1/lr_multiplier²), so the multiplier cancels at initialisation.
    """

    features: int
    initial_bias: float | tuple[float, ...] = 0.0
    initial_scale: float = 1.0
    lr_multiplier: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch in_features"]) -> Float[Array, "batch features"]:
        fan_in = x.shape[-1]
        normal = nn.initializers.normal(self.initial_scale / self.lr_multiplier)
        kernel = self.param("kernel", normal, (fan_in, self.features), self.param_dtype)
        start = nn.initializers.constant(np.asarray(self.initial_bias))
        bias = self.param("bias", start, (self.features,), self.param_dtype)
        kernel, bias = kernel * (self.lr_multiplier / fan_in**0.5), bias * self.lr_multiplier
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class EqualizedConv(nn.Module):
    """A "same" convolution with kernel/√(side²·channels).

    Attributes:
        kernel_size: side of the kernel, odd.
        convolve: how the kernel is applied: `fir.convolve`, `fir.upsample_convolve` or
            `fir.convolve_downsample`.
    """

    features: int
    kernel_size: int
    use_bias: bool = True
    convolve: Callable[[Array, Array], Array] = convolve
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, self.param_dtype)
        kernel = kernel * math.prod(shape[:3]) ** -0.5
        x = self.convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            x = x + self.param(
                "bias", nn.initializers.zeros, (self.features,), self.param_dtype
            ).astype(x.dtype)
        return x
