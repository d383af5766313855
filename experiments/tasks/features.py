"""Features by which drifting compares images: functions `(frozen, images) -> features`.

Features are several arrays `[batch places dimension]`. Each place of each array has a drift of its
own. `frozen` is the tree of what the task loads.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, PyTree

from genjax.models.encoders.vgg16 import VGG16
from genjax.nn import patchify
from genjax.pretrained.lpips import load_vgg16

Images = Float[Array, "batch height width channels"]
Features = list[Float[Array, "batch places dimension"]]


@dataclass(frozen=True)
class PixelFeatures:
    """The pixels of whole images and of their patches, for images as small as digits.

    Attributes:
        patch_sizes: sides of the patches, each of which divides the images' sides.
    """

    patch_sizes: tuple[int, ...] = ()

    def frozen(self) -> dict[str, PyTree]:
        return {}

    abstract_frozen = frozen

    def __call__(self, frozen: PyTree, images: Images) -> Features:
        whole = images.reshape(len(images), 1, -1)
        return [whole, *(patchify(images, side) for side in self.patch_sizes)]


@dataclass(frozen=True)
class VGG16Features:
    """The means of VGG16's five feature maps over squares, for images of at least 16 pixels a side.

    Attributes:
        places: squares along a side, where a map has as many positions.
    """

    places: int = 4

    def frozen(self) -> dict[str, PyTree]:
        """Load VGG16's variables, on the host."""
        return {"vgg16": load_vgg16()[1]}

    def abstract_frozen(self) -> dict[str, PyTree]:
        """Return what `frozen` would load, in shapes."""
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        return {"vgg16": jax.eval_shape(VGG16().init, jax.random.key(0), images)}

    def __call__(self, frozen: PyTree, images: Images) -> Features:
        maps = VGG16().apply(frozen["vgg16"], images)
        return [self._pooled(features) for features in maps]

    def _pooled(self, features: Float[Array, "batch height width channels"]) -> Array:
        rows, columns = (min(self.places, side) for side in features.shape[1:3])
        height, width = features.shape[1] // rows, features.shape[2] // columns
        whole = features[:, : rows * height, : columns * width]
        squares = dict(h=height, w=width)
        return reduce(whole, "b (r h) (c w) d -> b (r c) d", "mean", **squares)
