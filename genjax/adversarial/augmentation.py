"""Differentiable augmentation, which keeps a discriminator from memorizing a small data set early.

Real and generated images get the same kinds of random changes before the discriminator sees them
(Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", DiffAugment).

An augmentation is `augmentation(key, image) -> image` on one image `[height width channels]` in
[−1, 1]. Gradients flow through it to the generator.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Image = Float[Array, "height width channels"]
Augmentation = Callable[[Key[Array, ""], Image], Image]


def augment(
    keys: Key[Array, " batch"],
    images: Float[Array, " batch *shape"],
    augmentations: Sequence[Augmentation],
) -> Float[Array, " batch *shape"]:
    """Apply all augmentations to each image in order, each with its own key.

    Args:
        keys: one per image.
        images: `[batch height width channels]`.
        augmentations: `color`, `translation`, `cutout` or others like them.
    """

    def augment_one(key, image):
        for i, augmentation in enumerate(augmentations):
            image = augmentation(jax.random.fold_in(key, i), image)
        return image

    return jax.vmap(augment_one)(keys, images)


def check_image(image: Float[Array, "..."]) -> None:
    """Raise ValueError for a batch of images, which would share one draw, and for bytes."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"images are floats in [−1, 1] (genjax.data.to_float); got {image.dtype}")
    if image.ndim != 3:
        raise ValueError(
            "an augmentation takes one image [height width channels]; got "
            f"{list(image.shape)}: give batches to genjax.adversarial.augment"
        )


def color(key: Key[Array, ""], image: Image) -> Image:
    """Change brightness by ± ½, saturation by a factor in [0, 2] and contrast by one in [½, 1½].

    All are uniform and follow in this order.
    """
    check_image(image)
    brightness, saturation, contrast = jax.random.uniform(key, (3,), image.dtype, -0.5, 0.5)
    image = image + brightness
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (1 + 2 * saturation) * (image - grey)
    return image.mean() + (1 + contrast) * (image - image.mean())


def translation(key: Key[Array, ""], image: Image, ratio: float = 0.125) -> Image:
    """Shift the image by whole pixels, uniformly up to `ratio` of each side in both directions.

    Pixels that enter are 0.
    """
    check_image(image)
    height, width, channels = image.shape
    reach = jnp.array([int(height * ratio + 0.5), int(width * ratio + 0.5)])
    down, right = jax.random.randint(key, (2,), -reach, reach + 1)
    padding = [(int(side * ratio + 0.5),) * 2 for side in (height, width)]
    padded = jnp.pad(image, (*padding, (0, 0)))
    return jax.lax.dynamic_slice(
        padded, (reach[0] - down, reach[1] - right, 0), (height, width, channels)
    )


def cutout(key: Key[Array, ""], image: Image, ratio: float = 0.5) -> Image:
    """Set a box of `ratio` of each side to 0. Its centre is uniform over the image."""
    check_image(image)
    shape = image.shape[:2]
    sides = jnp.array([int(side * ratio + 0.5) for side in shape])
    centre = jax.random.randint(key, (2,), 0, jnp.array(shape) + 1 - sides % 2)
    start = (centre - sides // 2)[:, None, None]
    place = jnp.stack(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"))
    inside = jnp.all((place >= start) & (place < start + sides[:, None, None]), axis=0)
    return jnp.where(inside[:, :, None], 0, image)
