"""A GAN of dense layers, for points instead of images.

Both networks begin with sines and cosines of random, trained frequencies (Tancik et al. 2020,
"Fourier features"). Without these features the networks learn steep functions slowly, and distant
clusters need steep functions.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.nn import Dense

Dtype = Any


def _layers(
    x: Array, num_waves: int, frequency: float, sizes: list[int], dtype: Dtype, param_dtype: Dtype
) -> Array:
    """Apply sines and cosines of `num_waves` frequencies, then dense layers with leaky ReLUs."""
    types = dict(dtype=dtype, param_dtype=param_dtype)
    init = nn.initializers.normal(frequency)
    angles = Dense(num_waves, use_bias=False, kernel_init=init, name="frequencies", **types)(x)
    x = np.sqrt(2) * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    for i, size in enumerate(sizes):
        x = nn.leaky_relu(x, 0.2) if i else x
        init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        x = Dense(size, kernel_init=init, name=f"dense_{i}", **types)(x)
    return x


class Generator(nn.Module):
    """`depth` hidden layers from z to a point of `features` coordinates.

    A class is concatenated to z as a one-hot vector.

    Attributes:
        num_waves: number of sines, and of cosines, before the hidden layers.
        frequency: standard deviation of the angular frequencies before training.
    """

    width: int = 128
    depth: int = 4
    features: int = 2
    latent_size: int = 2
    num_waves: int = 64
    frequency: float = 3.0
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch features"]:
        if self.num_classes:
            z = jnp.concatenate([z, nn.one_hot(labels, self.num_classes)], axis=1)
        sizes = [self.width] * self.depth + [self.features]
        return _layers(
            z, self.num_waves, self.frequency, sizes, self.dtype, self.param_dtype
        ).astype(jnp.float32)


class Discriminator(nn.Module):
    """`depth` hidden layers from a point to a logit.

    A class is concatenated to the point as a one-hot vector.

    Attributes:
        num_waves: number of sines, and of cosines, before the hidden layers.
        frequency: standard deviation of the angular frequencies before training.
    """

    width: int = 128
    depth: int = 2
    num_waves: int = 64
    frequency: float = 1.0
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        points: Float[Array, "batch features"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " batch"]:
        if self.num_classes:
            points = jnp.concatenate([points, nn.one_hot(labels, self.num_classes)], axis=1)
        sizes = [self.width] * self.depth + [1]
        return _layers(points, self.num_waves, self.frequency, sizes, self.dtype, self.param_dtype)[
            :, 0
        ].astype(jnp.float32)
