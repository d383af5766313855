"""PatchGAN, a discriminator of image patches (Isola et al. 2017).

"Image-to-image translation with conditional adversarial networks", sections 3.2.2 and 6.1.2.
Paddings are those of the authors' PyTorch code, which VQGAN (Esser et al. 2021) uses too.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.gans.dcgan import batch_norm, small
from genjax.nn import GroupNorm

Dtype = Any


class Discriminator(nn.Module):
    """A discriminator with a logit for every patch of an image.

    `layers` 4×4 convolutions of stride 2 are followed by two of stride 1. Three layers give each
    logit 70×70 pixels, two layers 34×34. With batch norm and `train=True` the collection
    "batch_stats" must be mutable.

    Attributes:
        width: channels after the first convolution; each further convolution doubles them, up to
            8·width.
        layers: number of convolutions of stride 2.
        groups: groups of group norm, which has no running statistics; None for batch norm, the
            authors' choice.
    """

    width: int = 64
    layers: int = 3
    groups: int | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch rows columns"]:
        """Return logits in float32. `labels` are unused; every discriminator takes them.

        Raises:
            ValueError: the images are too small for one logit.
        """
        least = 3 * 2**self.layers
        if min(images.shape[1:3]) < least:
            height, width = images.shape[1:3]
            raise ValueError(
                f"{self.layers} layers need images of {least}×{least} or more; these are "
                f"{height}×{width}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = images
        for i in range(self.layers + 1):
            normalized = i > 0
            x = nn.Conv(
                self.width * min(2**i, 8),
                (4, 4),
                strides=2 if i < self.layers else 1,
                padding=1,
                use_bias=not normalized or self.groups is not None,  # batch norm cancels a bias
                kernel_init=small,
                name=f"conv_{i}",
                **types,
            )(x)
            if normalized and self.groups is None:
                x = batch_norm(f"norm_{i}", train, **types)(x)
            elif normalized:
                x = GroupNorm(self.groups, epsilon=1e-5, name=f"norm_{i}", **types)(x)
            x = nn.leaky_relu(x, 0.2)
        logits = nn.Conv(1, (4, 4), padding=1, kernel_init=small, name="head", **types)(x)
        return logits[..., 0].astype(jnp.float32)
