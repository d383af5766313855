"""Autoencoders on what is larger than memory: by overlapping tiles, and by chunks of time.

Chunks of a causal network are exact. Tiles are not: near a tile's edge a network computes something else than
it does there in the whole (padding, attention, norms), so they overlap and are blended.

The two together, where `step(chunk, cache) -> (frames, cache)` decodes a chunk of a video:

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
    """Equal tiles, evenly spaced, of the axes before the channels: `[batch … height width channels]`.

    Two numbers of each attribute tile height and width, three time too. In an overlap the quarter next to
    either tile's edge counts for nothing, and between the two quarters one tile passes linearly into the
    other; so what a function computes from places at most a quarter of the overlap away is what it computes
    of the whole.

    Attributes:
        size: of the whole, in latent places.
        tile: of a tile, in latent places; an axis that is not longer has one tile.
        overlap: of neighbouring tiles at least, in latent places.

    Raises:
        ValueError: the attributes differ in length, or an overlap is not within 1 and less than a tile.
    """

    size: Sequence[int]
    tile: Sequence[int]
    overlap: Sequence[int]

    def __post_init__(self):
        if not len(self.size) == len(self.tile) == len(self.overlap):
            raise ValueError(
                f"size, tile and overlap have as many axes; got {self.size}, {self.tile} and {self.overlap}"
            )
        if not all(
            1 <= overlap < tile for overlap, tile in zip(self.overlap, self.tile, strict=True)
        ):
            raise ValueError(
                f"an overlap is at least 1 and less than a tile; got {self.overlap} of tiles {self.tile}"
            )

    def _intervals(self) -> list[list[tuple[int, int]]]:
        """Start and end of the tiles along each axis, in latent places."""
        intervals = []
        for size, tile, overlap in zip(self.size, self.tile, self.overlap, strict=True):
            last = max(0, math.ceil((size - tile) / (tile - overlap)))
            tile = min(tile, size)
            starts = [i * (size - tile) // max(last, 1) for i in range(last + 1)]
            intervals.append([(start, start + tile) for start in starts])
        return intervals

    def _windows(self, factor: Sequence[int]) -> list[tuple[slice, ...]]:
        """The places of every tile in an array that has `factor` places a latent place."""
        along = [
            [slice(scale * start, scale * end) for start, end in intervals]
            for scale, intervals in zip(factor, self._intervals(), strict=True)
        ]
        return list(itertools.product(*along))

    def _weights(self, factor: Sequence[int]) -> list[np.ndarray]:
        """Of every tile at every place of the whole, `[tiles places]` along each axis; at a place they sum to
        1."""
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
        """The tiles of an array that has `factor` places a latent place, 1 if None."""
        windows = self._windows(factor or [1] * len(self.size))
        return jnp.stack([x[(..., *window, slice(None))] for window in windows])

    def merge(
        self, tiles: Float[Array, "tiles batch *tile_shape"], factor: Sequence[int] | None = None
    ) -> Float[Array, " batch *shape"]:
        """The blended whole, in float32, of tiles that have `factor` places a latent place, 1 if None."""
        factor = factor or [1] * len(self.size)
        axes = [scale * size for scale, size in zip(factor, self.size, strict=True)]
        whole = jnp.zeros((*tiles.shape[1 : -1 - len(axes)], *axes, tiles.shape[-1]), jnp.float32)
        weights = itertools.product(*self._weights(factor))
        for tile, window, along in zip(tiles, self._windows(factor), weights, strict=True):
            weight = np.ones(1, np.float32)  # of the channels' axis
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
    """`decode(latents)` by tiles, one at a time: memory but for the result is that of one.

    Args:
        tile, overlap: of height and width, or of time too, in latent places (see `Tiling`).
        factor: places of the output a latent place, as many numbers.
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
    """`encode(images)` by tiles, one at a time: latents, or any tree of arrays of the latents' size.

    Args:
        tile, overlap: of height and width, or of time too, in latent places (see `Tiling`).
        factor: places of the images a latent place, as many numbers.

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
    """`first` frames of a video, which may be a mapped file, then `length` at a time, and what is left."""
    yield video[:, :first]
    for start in range(first, video.shape[1], length):
        yield video[:, start : start + length]


def stream(
    step: Callable[[Array, PyTree], tuple[PyTree, PyTree]], chunks: Iterable[Array | np.ndarray]
) -> Iterator[PyTree]:
    """The outputs of `step(chunk, cache) -> (output, cache)` for one chunk after the other, from cache None.

    Nothing but the cache is kept, and no chunk is asked for before it is due, so a video of any length takes
    the memory of a chunk. `step` is to be jitted by the caller.
    """
    cache = None
    for chunk in chunks:
        output, cache = step(chunk, cache)
        yield output
