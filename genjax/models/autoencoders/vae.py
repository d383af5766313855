"""A variational autoencoder of dense layers (Kingma & Welling 2014; with the sizes of Burda et al. 2016, section 5)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import Dense

Dtype = Any


class VAE(nn.Module):
    """Images to Gaussians of one vector of latents, and latents to what a likelihood reads.

    Attributes:
        image_shape: (height, width, channels).
        latent_size: numbers in a latent.
        outputs: that the decoder has per value of the image, as many as the likelihood's parameters: means first, of
            all channels, then scales.
        width: of the hidden layers, `depth` of them in the encoder and as many in the decoder, with tanh.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 50
    outputs: int = 1
    width: int = 200
    depth: int = 2
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = lambda: [Dense(self.width, **types) for _ in range(self.depth)]
        self.encoder, self.decoder = hidden(), hidden()
        self.moments = Dense(2 * self.latent_size, **types)
        self.head = Dense(self.outputs * math.prod(self.image_shape), **types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """Mean and log-variance, the latter in [−30, 20]."""
        x = images.reshape(len(images), -1)
        for dense in self.encoder:
            x = nn.tanh(dense(x))
        mean, log_variance = jnp.split(self.moments(x).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(
        self, latents: Float[Array, "batch latents"]
    ) -> Float[Array, "batch height width outputs"]:
        x = latents
        for dense in self.decoder:
            x = nn.tanh(dense(x))
        height, width, channels = self.image_shape
        return self.head(x).astype(jnp.float32).reshape(-1, height, width, self.outputs * channels)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width outputs"]:
        """The decoded mean."""
        return self.decode(self.encode(images)[0])
