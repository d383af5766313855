"""Autoencoders on data larger than memory: overlapping tiles and chunks of time.

Chunks of a causal network are exact. Tiles are not: near the edge of a tile, padding, attention and
norms give other results than within the whole. Tiles therefore overlap, and overlaps are blended.

This example uses both. `step(chunk, cache) -> (frames, cache)` decodes a chunk of a video:

    tiling = Tiling(size=(90, 160), tile=(32, 32), overlap=(8, 8))

    @jax.jit
    def tiled_step(chunk, caches):
        tiles, caches = jax.lax.map(lambda tile: step(*tile), (tiling.split(chunk), caches))
        return tiling.merge(tiles, factor=(8, 8)), caches

    for frames in stream(tiled_step, chunks_of_frames(latents, first=1, length=1)):
        …
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


@dataclass(frozen=True)
class Tiling:
    """Equal, evenly spaced tiles of `[batch … height width channels]`.

    The tiled axes are those before the channels.

    Attributes of two numbers tile height and width. Attributes of three numbers also tile time. In
    an overlap, the quarter next to the edge of each tile is ignored. Between these two quarters,
    the weights change linearly from one tile to the other. If a function's output depends only on
    places within a quarter of the overlap, tiles give the same result as the whole.

    Attributes:
        size: size of the whole, in latent places.
        tile: size of a tile, in latent places. An axis that is not longer than this has one tile.
        overlap: the least overlap of neighbouring tiles, in latent places.

    Raises:
        ValueError: the attributes differ in length, or an overlap is below 1 or not less than a
            tile.
    """

    size: Sequence[int]
    tile: Sequence[int]
    overlap: Sequence[int]

    def __post_init__(self):
        if not len(self.size) == len(self.tile) == len(self.overlap):
            raise ValueError(
                "size, tile and overlap have the same number of axes; got "
                f"{self.size}, {self.tile} and {self.overlap}"
            )
        if not all(
            1 <= overlap < tile for overlap, tile in zip(self.overlap, self.tile, strict=True)
        ):
            raise ValueError(
                "an overlap is at least 1 and less than a tile; got overlaps "
                f"{self.overlap} of tiles {self.tile}"
            )

    def _intervals(self) -> list[list[tuple[int, int]]]:
        """Return the start and end of the tiles along each axis, in latent places."""
        intervals = []
        for size, tile, overlap in zip(self.size, self.tile, self.overlap, strict=True):
            last = max(0, math.ceil((size - tile) / (tile - overlap)))
            tile = min(tile, size)
            starts = [i * (size - tile) // max(last, 1) for i in range(last + 1)]
            intervals.append([(start, start + tile) for start in starts])
        return intervals

    def _windows(self, factor: Sequence[int]) -> list[tuple[slice, ...]]:
        """Return the places of every tile in an array with `factor` places per latent place."""
        along = [
            [slice(scale * start, scale * end) for start, end in intervals]
            for scale, intervals in zip(factor, self._intervals(), strict=True)
        ]
        return list(itertools.product(*along))

    def _weights(self, factor: Sequence[int]) -> list[np.ndarray]:
        """Return the tiles' weights, `[tiles places]` for each axis, which sum to 1 everywhere."""
        weights = []
        for size, overlap, scale, intervals in zip(
            self.size, self.overlap, factor, self._intervals(), strict=True
        ):
            place = np.arange(scale * size) + 0.5
            start, end = scale * np.array(intervals).T[..., None]
            from_start = np.where(start > 0, place - start, np.inf)
            from_end = np.where(end < scale * size, end - place, np.inf)
            inside = np.minimum(from_start, from_end) / (scale * overlap)
            ramp = np.clip(2 * inside - 0.5, 0, 1)
            weights.append((ramp / ramp.sum(axis=0)).astype(np.float32))
        return weights

    def split(
        self, x: Float[Array, " batch *shape"], factor: Sequence[int] | None = None
    ) -> Float[Array, "tiles batch *tile_shape"]:
        """Return the tiles of an array.

        Args:
            factor: places of the array per latent place; 1 if None.
        """
        windows = self._windows(factor or [1] * len(self.size))
        return jnp.stack([x[(..., *window, slice(None))] for window in windows])

    def merge(
        self, tiles: Float[Array, "tiles batch *tile_shape"], factor: Sequence[int] | None = None
    ) -> Float[Array, " batch *shape"]:
        """Return the whole, blended from its tiles in float32.

        Args:
            factor: places of the tiles per latent place; 1 if None.
        """
        factor = factor or [1] * len(self.size)
        axes = [scale * size for scale, size in zip(factor, self.size, strict=True)]
        whole = jnp.zeros((*tiles.shape[1 : -1 - len(axes)], *axes, tiles.shape[-1]), jnp.float32)
        weights = itertools.product(*self._weights(factor))
        for tile, window, along in zip(tiles, self._windows(factor), weights, strict=True):
            weight = np.ones(1, np.float32)  # for the axis of channels
            for places, one in reversed(list(zip(window, along, strict=True))):
                weight = np.multiply.outer(one[places], weight)
            whole = whole.at[(..., *window, slice(None))].add(weight * tile)
        return whole


def decode_tiled(
    decode: Callable[[Array], PyTree[Array]],
    latents: Float[Array, " batch *shape"],
    tile: Sequence[int],
    overlap: Sequence[int],
    factor: Sequence[int],
) -> PyTree[Array]:
    """Return `decode(latents)`, computed one tile at a time.

    The memory needed is that of `decode` for one tile, of the outputs of all tiles, and of the
    result.

    Args:
        decode: `latents -> output`, an array or a tree of arrays.
        tile, overlap: for height and width, or for time too, in latent places (see `Tiling`).
        factor: places of the output per latent place, one number for each axis of `tile`.
    """
    tiling = Tiling(latents.shape[-1 - len(tile) : -1], tile, overlap)
    tiles = jax.lax.map(decode, tiling.split(latents))
    return jax.tree.map(lambda output: tiling.merge(output, factor), tiles)


def encode_tiled(
    encode: Callable[[Array], PyTree[Array]],
    images: Float[Array, " batch *shape"],
    tile: Sequence[int],
    overlap: Sequence[int],
    factor: Sequence[int],
) -> PyTree[Array]:
    """Return `encode(images)`, computed one tile at a time.

    Args:
        encode: `images -> latents`, an array or any tree of arrays of the latents' size.
        tile, overlap: for height and width, or for time too, in latent places (see `Tiling`).
        factor: places of the images per latent place, one number for each axis of `tile`.

    Raises:
        ValueError: an axis is not divisible by its factor.
    """
    axes = images.shape[-1 - len(tile) : -1]
    if any(size % scale for size, scale in zip(axes, factor, strict=True)):
        raise ValueError(f"sizes are multiples of {tuple(factor)}; got {axes}: crop or resize")
    tiling = Tiling(
        [size // scale for size, scale in zip(axes, factor, strict=True)], tile, overlap
    )
    return jax.tree.map(tiling.merge, jax.lax.map(encode, tiling.split(images, factor)))


def chunks_of_frames(
    video: Float[Array | np.ndarray, "batch time *shape"], *, first: int, length: int
) -> Iterator[Float[Array | np.ndarray, "batch chunk_time *shape"]]:
    """Yield the first `first` frames of a video, then `length` at a time, then the rest.

    The video may be a mapped file.
    """
    yield video[:, :first]
    for start in range(first, video.shape[1], length):
        yield video[:, start : start + length]


def stream(
    step: Callable[[Array, PyTree], tuple[PyTree, PyTree]], chunks: Iterable[Array | np.ndarray]
) -> Iterator[PyTree]:
    """Yield the outputs of `step(chunk, cache) -> (output, cache)` for one chunk after another.

    The first cache is None. Only the cache is kept, and chunks are read one at a time, so a video
    of any length takes the memory of one chunk. The caller jits `step`.
    """
    cache = None
    for chunk in chunks:
        output, cache = step(chunk, cache)
        yield output
