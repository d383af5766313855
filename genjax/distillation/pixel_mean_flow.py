"""Pixel mean flow: one step from noise to pixels by a network that predicts data.

Lu et al. 2026. Teacher: none. The student takes t and s. The loss takes the derivative of the
network along the trajectory, forward-mode. Rectified flow.

The loss is `mean_flow.guided_mean_flow_loss` of `average_velocity(network)`, plus
`perceptual_loss` of the data that the average velocity implies.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import expand

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def average_velocity(clean: Callable, smallest: float = 0.05) -> Callable:
    """Make u of a network that predicts data: u = (x_t − x̂)/max(t, smallest).

    Data lie near a manifold of few dimensions, so x̂ is easier to learn for large patches than u.
    The bound keeps u finite at t = 0 (Li & He 2025, JiT).

    Args:
        clean: `(x, t, s, *conditioning) -> x̂`, the network with its parameters bound.
    """

    def apply(x_t, t, s, *conditioning):
        estimate = clean(x_t, t, s, *conditioning)
        return (x_t - estimate) / expand(jnp.maximum(t, smallest), x_t)

    return apply


def perceptual_loss(
    distance: Callable[[Batch, Batch], Float[Array, " batch"]],
    x: Batch,
    x_t: Batch,
    t: Times,
    u: Batch,
    latest: float = 0.8,
) -> Float[Array, " batch"]:
    """Compute a distance between x and x_t − t·u for t below `latest`, and 0 later.

    At later times x̂ is a mean of many images, for which a perceptual distance means nothing.

    Args:
        distance: such as LPIPS, `(generated, real) -> [batch]`.
        u: the average velocity of (x_t, t, s), through which the gradient passes.
    """
    return jnp.where(t < latest, distance(x_t - expand(t, x_t) * u, x), 0.0)


def random_crops(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    side: int,
    areas: tuple[float, float] = (0.08, 1.0),
    ratio: float = 4 / 3,
) -> Float[Array, "batch side side channels"]:
    """Cut a rectangle from each image and resize it, as Inception's training does.

    One key cuts the same rectangles from generated and real images. Resizing is cubic, with
    antialiasing, and its filter also sees the pixels around a rectangle.

    Args:
        side: of the returned images, in pixels.
        areas: least and largest share of the image.
        ratio: of width and height, at most; it is log-uniform between 1/ratio and ratio.
    """
    height, width, channels = images.shape[1:]

    def crop(key, image):
        area_key, shape_key, place_key = jax.random.split(key, 3)
        area = jax.random.uniform(area_key, (), minval=areas[0], maxval=areas[1])
        bound = math.log(ratio)
        shape = jnp.exp(jax.random.uniform(shape_key, (), minval=-bound, maxval=bound))
        whole = jnp.array([height, width])
        sides = jnp.sqrt(area * height * width * jnp.array([1 / shape, shape]))
        sides = jnp.clip(jnp.round(sides), 1, whole)
        start = jnp.floor(jax.random.uniform(place_key, (2,)) * (whole - sides + 1))
        scale = side / sides
        size = (side, side, channels)
        place = -start * scale
        return jax.image.scale_and_translate(image, size, (0, 1), scale, place, "cubic")

    return jax.vmap(crop)(jax.random.split(key, len(images)), images)
