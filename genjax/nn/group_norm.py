"""Group normalization of images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class GroupNorm(nn.Module):
    """Bring each group of features to mean 0 and variance 1 over an image; apply scale and bias.

    Wu & He 2018, "Group Normalization", equations 1 to 6, with the parameters of
    `flax.linen.GroupNorm`. Sums run over places first, and then over a group's features. For groups
    of few features, a sum over both at once takes XLA's CPU back end two to five times as long, and
    has larger rounding errors.

    Attributes:
        groups: of features, equally many each.
        epsilon: added to the variance.
        dtype: of the result; statistics are of float32.

    Raises:
        ValueError: the features do not divide into `groups`.
    """

    groups: int
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch height width features"]
    ) -> Float[Array, "*batch height width features"]:
        features = x.shape[-1]
        if features % self.groups:
            raise ValueError(f"{features} features do not divide into {self.groups} groups")
        scale = self.param("scale", nn.initializers.ones, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        x = x.astype(jnp.float32)
        expectation = _mean_of_groups(x, self.groups)
        variance = jnp.maximum(_mean_of_groups(x**2, self.groups) - expectation**2, 0.0)
        scale = jax.lax.rsqrt(variance + self.epsilon) * scale
        return (x * scale + (bias - expectation * scale)).astype(self.dtype)


def _mean_of_groups(x: Array, groups: int) -> Array:
    """Return the mean of each feature's group, repeated for the group's features."""
    of_features = x.mean((-3, -2))
    of_groups = of_features.reshape(*of_features.shape[:-1], groups, -1).mean(-1)
    return jnp.repeat(of_groups, x.shape[-1] // groups, -1)[..., None, None, :]
