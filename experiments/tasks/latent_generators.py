"""A generator as a function of the latents that an encoder gives, and the encoders of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree


@dataclass(frozen=True)
class LatentGenerator:
    """A generator whose latents are w, one for all styles, if it has styles; z otherwise.

    Its functions take the generator's variables first.
    """

    network: nn.Module

    @property
    def has_styles(self) -> bool:
        return hasattr(self.network, "map")

    @property
    def latent_size(self) -> int:
        return self.network.w_size if self.has_styles else self.network.latent_size

    def from_z(
        self, variables: PyTree, z: Float[Array, "batch z"], labels: Int[Array, " batch"] | None
    ) -> Float[Array, "batch latent"]:
        """Return the latents of z."""
        if not self.has_styles:
            return z
        return self.network.apply(variables, z, labels, method="map")[:, 0]

    def draw(
        self,
        variables: PyTree,
        key: Key[Array, ""],
        labels: Int[Array, " batch"] | None,
        count: int,
    ) -> Float[Array, "batch latent"]:
        """Draw latents as in sampling without truncation."""
        z = jax.random.normal(key, (count, self.network.latent_size))
        return self.from_z(variables, z, labels)

    def images(
        self,
        variables: PyTree,
        latents: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None,
    ) -> Float[Array, " batch *shape"]:
        """Return images of latents, with the constant noise of a generator that has noise."""
        if not self.has_styles:
            return self.network.apply(variables, latents, labels)
        styles = jnp.repeat(latents[:, None], self.network.num_styles, axis=1)
        return self.network.apply(variables, styles, method="synthesize")


@dataclass(frozen=True)
class Inverses:
    """A trained generator and its encoders, for the evaluator of inversions.

    Attributes:
        conditional: whether generator and encoders take labels; they get None otherwise.
        encoders: `encode(variables, images, labels) -> latents` by name, the run's own first.
        load: returns the variables that all these functions take, on the host.
    """

    generator: LatentGenerator
    conditional: bool
    encoders: Mapping[str, Callable]
    load: Callable[[], PyTree]
