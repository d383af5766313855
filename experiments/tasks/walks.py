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

    Each example walks by itself, so a frame does not depend on the batch.

    Args:
        images: from latents to images.
        interpolation: `genjax.diffusion.slerp` or `genjax.adversarial.lerp`.
    """
    walk = lambda stops: adversarial.walk(stops, STEPS, interpolation)
    return jax.lax.map(images, jax.vmap(walk, in_axes=1, out_axes=1)(stops))
