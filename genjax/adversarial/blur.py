"""A blur of all images that the discriminator sees, which fades in training.

Karras et al. 2021 ("Alias-free generative adversarial networks", section 3.2). In their
configuration R, the discriminator would otherwise soon judge by details that the generator cannot
make yet.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

Number = float | Real[Array, ""]


@dataclass(frozen=True)
class FadingBlur:
    """A blur whose width falls linearly to 0.

    Attributes:
        sigma: of the blur before the first step, in pixels; see `blur`.
        images: number of real images after which there is no blur.

    Raises:
        ValueError: σ is negative, or there are no such images.
    """

    sigma: float
    images: int

    def __post_init__(self):
        if self.sigma < 0 or self.images <= 0:
            raise ValueError(
                "a fading blur has a sigma of at least 0 and a positive number of images; got "
                f"sigma={self.sigma}, images={self.images}"
            )

    def sigma_at(self, seen: Number) -> Float[Array, ""]:
        """Return σ after so many real images."""
        return self.sigma * jnp.maximum(1 - seen / self.images, 0.0)

    def __call__(
        self, images: Float[Array, "batch height width channels"], seen: Number
    ) -> Float[Array, "batch height width channels"]:
        """Return the images as the discriminator sees them after so many real images."""
        return blur(images, self.sigma_at(seen), int(3 * self.sigma))


def blur(
    images: Float[Array, "batch height width channels"], sigma: Number, reach: int
) -> Float[Array, "batch height width channels"]:
    """Filter height and width by the weights 2^−(x/σ)², cut off beyond ⌊3σ⌋ pixels, of sum 1.

    So a weight falls to a half at the distance σ. The standard deviation is σ/√(2·ln 2), as in the
    authors' program. There are zeros around the images. σ below 1/3 changes nothing.

    Args:
        sigma: may be traced. Without blur there is no extra cost.
        reach: a bound of ⌊3σ⌋.
    """

    def weights(distance):
        near = jnp.abs(distance) <= jnp.floor(3 * sigma)
        return jnp.where(near, jnp.exp2(-jnp.square(distance / sigma)), 0.0)

    def blurred(images):
        total = weights(jnp.arange(-reach, reach + 1)).sum()
        rows, columns = (
            weights(jnp.arange(side)[:, None] - jnp.arange(side)) / total
            for side in images.shape[1:3]
        )
        result = jnp.einsum("yi,xj,bijc->byxc", rows, columns, images, precision="highest")
        return result.astype(images.dtype)

    return jax.lax.cond(3 * sigma >= 1, blurred, lambda images: images, images)
