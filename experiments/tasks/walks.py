"""Walks through latents, as the animation of tasks that have latents."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from genjax import adversarial

STEPS = 24  # frames


def latent_walk(
    images: Callable, stops: Float[Array, " stops batch *latent"], interpolation: Callable
) -> Float[Array, " frames batch *shape"]:
    """Return images along a walk from stop to stop, which ends at the last.

    Args:
        images: from latents to images.
        interpolation: `genjax.diffusion.slerp` or `genjax.adversarial.lerp`.
    """
    return jax.lax.map(images, adversarial.walk(stops, STEPS, interpolation))
