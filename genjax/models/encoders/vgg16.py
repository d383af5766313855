"""The convolutions of VGG16 (Simonyan & Zisserman 2015, configuration D), for feature distances."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn.grouped import grouped_convolve

Dtype = Any
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage
# Mean and standard deviation of ImageNet's colours, for pixels in [−1, 1].
COLOUR_MEAN = (-0.030, -0.088, -0.188)
COLOUR_DEVIATION = (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """Images in [−1, 1] to the rectified features of five stages, each before its pooling.

    Stage i has sides 2ⁱ times smaller, rounded down. There are no fully connected layers, so images
    may have any size from 16×16. Images of one channel are grey: all three colours are equal.

    Attributes:
        widths: channels of each stage.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the five feature maps.

        Raises:
            ValueError: the images have neither 1 nor 3 channels, or a side below 16 pixels.
        """
        if images.shape[-1] not in (1, 3) or min(images.shape[1:3]) < 16:
            raise ValueError(
                f"images have shape {images.shape}; expected [batch height width channels] with 1 "
                "or 3 channels and sides of at least 16, which VGG16 halves four times: convert or "
                "enlarge them"
            )
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), dtype=self.dtype, param_dtype=self.param_dtype
        )
        x = (images.astype(jnp.float32) - jnp.array(COLOUR_MEAN)) / jnp.array(COLOUR_DEVIATION)
        maps = []
        for stage, (depth, width) in enumerate(zip(DEPTHS, self.widths, strict=True), 1):
            if maps:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            # XLA's CPU backend takes 50 times as long for convolutions of maps as small as 2×2.
            convolve = grouped_convolve if stage == len(DEPTHS) else None
            for i in range(depth):
                x = nn.relu(
                    conv(width, conv_general_dilated=convolve, name=f"conv{stage}_{i + 1}")(x)
                )
            maps.append(x)
        return tuple(maps)


def vgg16_features(
    variables: Any, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch 512"]:
    """Compute features of images in [−1, 1] for distances between sets.

    The features are means over positions of the last maps. With the published weights
    (`genjax.pretrained.lpips.load_vgg16`), their Fréchet distance is the FD-VGG16. It is not an
    FID, whose features are Inception's, and the two are not comparable.
    """
    # Full precision, so that a distance does not depend on the device.
    with jax.default_matmul_precision("highest"):
        return VGG16().apply(variables, images)[-1].mean(axis=(1, 2))
