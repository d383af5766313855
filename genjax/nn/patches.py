"""Images to sequences of patches and back.

Tokens may be split over devices; images are whole, for convolutions before or after.
"""

from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn.sharding import BATCH_AXES, constrain


def patchify(
    images: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch tokens features"]:
    """Non-overlapping square patches in row-major order; features ordered (row, column, channel).

    Raises:
        ValueError: height or width is not divisible by `patch_size`.
    """
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height}×{width} do not divide into patches of {patch_size}×{patch_size}"
        )
    images = constrain(images, BATCH_AXES)
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(
    tokens: Float[Array, "batch tokens features"], patch_size: int, height: int, width: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of `patchify` for an image of `height`×`width` pixels."""
    sizes = dict(h=height // patch_size, w=width // patch_size, p=patch_size, q=patch_size)
    return constrain(rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", **sizes), BATCH_AXES)
