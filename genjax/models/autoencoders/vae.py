"""A variational autoencoder of dense layers.

Kingma & Welling 2014, with the sizes of Burda et al. 2016, section 5.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import Dense

Dtype = Any


class VAE(GaussianAutoencoder):
    """A dense autoencoder from images to Gaussians of one latent vector, and back.

    The decoder returns the parameters of a likelihood of images.

    Attributes:
        image_shape: (height, width, channels).
        latent_size: number of features of the latent vector.
        outputs: number of the likelihood's parameters per value of the image. The decoder returns
            the means of all channels first, then the scales.
        width: number of features of a hidden layer. Hidden layers use tanh.
        depth: number of hidden layers of the encoder, and of the decoder.
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
        """Return the mean and the log-variance of the latents; the latter is in [−30, 20]."""
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
