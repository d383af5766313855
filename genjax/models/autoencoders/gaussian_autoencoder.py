"""The shared part of autoencoders to Gaussians of latents."""

import flax.linen as nn
from jaxtyping import Array, Float


class GaussianAutoencoder(nn.Module):
    """An autoencoder whose child has `encode`, to mean and log-variance, and `decode`."""

    def __call__(self, x: Float[Array, " batch *shape"]) -> Float[Array, " batch *decoded_shape"]:
        """Return the reconstruction from the latents' mean."""
        return self.decode(self.encode(x)[0])
