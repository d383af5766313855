"""PatchGAN (Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", sections 3.2.2 and 6.1.2),
with the paddings of its authors' PyTorch code, which VQGAN (Esser et al. 2021) trains against too.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.gans.dcgan import batch_norm, small
from genjax.nn import GroupNorm

Dtype = Any


class Discriminator(nn.Module):
    """A logit for every patch of an image: 4×4 convolutions, `layers` of them of stride 2, then two of stride 1.

    Three layers make a logit of 70×70 pixels, two of 34×34. With batch norm and `train=True` the collection
    "batch_stats" has to be mutable.

    Attributes:
        width: channels after the first convolution; every one after it has twice as many, up to eight times.
        layers: number of convolutions of stride 2.
        groups: of group norm, which has no running statistics; batch norm, as the authors have it, if None.
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
        """Logits in float32. `labels` are of no consequence here: they are part of every discriminator's signature.

        Raises:
            ValueError: images too small for one logit.
        """
        least = 3 * 2**self.layers
        if min(images.shape[1:3]) < least:
            height, width = images.shape[1:3]
            raise ValueError(
                f"{self.layers} layers judge images of {least}×{least} or more; these are {height}×{width}"
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
                use_bias=not normalized or self.groups is not None,  # batch norm would take it away
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
