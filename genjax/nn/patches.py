"""Images and videos to sequences of patches and back.

Tokens may be split over devices; images are whole, for convolutions before or after.
"""

from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn.sharding import BATCH_AXES, constrain


def patchify(
    images: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch tokens features"]:
    """Return square patches that do not overlap, in row-major order.

    The features of a patch are ordered (row, column, channel).

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
    """Invert `patchify` for an image of `height`×`width` pixels."""
    sizes = dict(h=height // patch_size, w=width // patch_size, p=patch_size, q=patch_size)
    return constrain(rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", **sizes), BATCH_AXES)


def patchify_video(
    video: Float[Array, "batch time height width channels"], patch_size: tuple[int, int, int]
) -> Float[Array, "batch tokens features"]:
    """Return non-overlapping patches of a video, frame by frame and in row-major order.

    The features of a patch are ordered (frame, row, column, channel).

    Args:
        patch_size: frames, rows and columns of a patch.

    Raises:
        ValueError: the video does not divide into patches.
    """
    sides = video.shape[1:4]
    if any(side % size for side, size in zip(sides, patch_size, strict=True)):
        video_shape, patch_shape = ("×".join(map(str, each)) for each in (sides, patch_size))
        raise ValueError(
            f"{video_shape} (frames, rows, columns) do not divide into patches of {patch_shape}"
        )
    sizes = dict(zip("pqr", patch_size, strict=True))
    pattern = "b (t p) (h q) (w r) c -> b (t h w) (p q r c)"
    return rearrange(constrain(video, BATCH_AXES), pattern, **sizes)


def unpatchify_video(
    tokens: Float[Array, "batch tokens features"],
    patch_size: tuple[int, int, int],
    sides: tuple[int, int, int],
) -> Float[Array, "batch time height width channels"]:
    """Return the video that `patchify_video` takes apart.

    Args:
        patch_size: frames, rows and columns of a patch.
        sides: frames, rows and columns of the video.
    """
    sizes = dict(zip("pqr", patch_size, strict=True))
    counts = {n: side // size for n, side, size in zip("thw", sides, patch_size, strict=True)}
    pattern = "b (t h w) (p q r c) -> b (t p) (h q) (w r) c"
    return constrain(rearrange(tokens, pattern, **sizes, **counts), BATCH_AXES)
