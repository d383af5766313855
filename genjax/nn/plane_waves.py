"""Plane waves of random frequencies, an input that can be moved and turned (Karras et al. 2021).

"Alias-free generative adversarial networks" (StyleGAN3), section 3.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def draw_waves(
    key: Key[Array, ""], count: int, bandwidth: float
) -> tuple[Float[Array, "count 2"], Float[Array, " count"]]:
    """Draw frequencies uniformly from a disc, and phases in turns from −1/2 to 1/2.

    Args:
        bandwidth: radius of the disc, in cycles per unit of length.
    """
    frequency_key, phase_key = jax.random.split(key)
    normal = jax.random.normal(frequency_key, (count, 2))
    radius = jnp.linalg.norm(normal, axis=1, keepdims=True)
    # e^(−r²/2) is uniform for normal numbers of length r.
    frequencies = bandwidth * jnp.exp(-(radius**2) / 4) * normal / radius
    return frequencies, jax.random.uniform(phase_key, (count,)) - 0.5


def transform_waves(
    frequencies: Float[Array, "#batch count 2"],
    phases: Float[Array, "#batch count"],
    transform: Float[Array, "#batch 3 3"],
) -> tuple[Float[Array, "batch count 2"], Float[Array, "batch count"]]:
    """Return the frequencies and phases of transformed waves.

    Args:
        transform: from places (x, y, 1) of the new image to those of the old one.
    """
    moved, turned = (
        jnp.matmul(frequencies, part, precision="highest")
        for part in (transform[:, :2, 2:], transform[:, :2, :2])
    )
    return turned, phases + moved[..., 0]


def plane_waves(
    frequencies: Float[Array, "batch count 2"],
    phases: Float[Array, "batch count"],
    size: int,
    rate: int,
) -> Float[Array, "batch size size count"]:
    """Return sin 2π(f·x + φ) on a square grid around the place (0, 0).

    Args:
        size: samples on a side of the grid.
        rate: samples per unit of length.
    """
    places = (np.arange(size) + 0.5 - size / 2) / rate
    grid = np.stack(np.meshgrid(places, places), axis=-1).astype(np.float32)  # x, y
    angles = jnp.einsum("hwf,bcf->bhwc", grid, frequencies, precision="highest")
    return jnp.sin(2 * np.pi * (angles + phases[:, None, None]))
