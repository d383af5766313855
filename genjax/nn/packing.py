"""Clips and images of any size as one batch: their patches packed in rows of equal length.

Dehghani et al. 2023, "Patch n' pack: NaViT"; Brooks et al. 2024 ("Sora") for video. A row holds
whole clips one after the other and ends with padding. An image is a clip of one frame.

    packing = Packing.of([(5, 4, 6), (1, 8, 8)], length=256)
    tokens = packing.pack([patches_of_clip, patches_of_image])  # [rows length features]
    outputs = attention(query, key, value, segment_mask(packing.segments))
    clip, image = packing.unpack(outputs)

The network is given `tokens`, `packing.segments` and `packing.positions`. Their shapes stay the
same while clips change, so the network compiles once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from genjax.nn.rotary import grid_positions

Tokens = Shaped[Array | np.ndarray, "rows length *features"]


@dataclass(frozen=True)
class Packing:
    """The places of clips in rows of `length` tokens.

    Attributes:
        grids: frames, rows and columns of each clip, in patches.
        length: number of tokens of a row.
        places: the row and the first token of each clip.
    """

    grids: tuple[tuple[int, int, int], ...]
    length: int
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, grids: Sequence[tuple[int, int, int]], length: int) -> "Packing":
        """Put each clip, the longest first, in the first row that has room for it.

        Raises:
            ValueError: a clip is longer than a row.
        """
        sizes = [math.prod(grid) for grid in grids]
        if max(sizes) > length:
            raise ValueError(
                f"a clip of {max(sizes)} patches does not fit in a row of {length}: give longer "
                "rows or a smaller clip"
            )
        places, used = [(0, 0)] * len(sizes), []
        for clip in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            fits = [row for row, count in enumerate(used) if count + sizes[clip] <= length]
            row = fits[0] if fits else len(used)
            used += [] if fits else [0]
            places[clip] = row, used[row]
            used[row] += sizes[clip]
        return cls(tuple(map(tuple, grids)), length, tuple(places))

    @property
    def rows(self) -> int:
        return 1 + max(row for row, _ in self.places)

    @property
    def slots(self) -> tuple[int, ...]:
        """The number of each clip within its row, from 0."""
        return tuple(
            sum(other[0] == place[0] and other < place for other in self.places)
            for place in self.places
        )

    @property
    def segments(self) -> Int[np.ndarray, "rows length"]:
        """The number within its row of each token's clip, and −1 at padding."""
        of_clips = [
            np.full(math.prod(grid), slot + 1, np.int32)
            for grid, slot in zip(self.grids, self.slots, strict=True)
        ]
        return self.pack(of_clips) - 1

    @property
    def positions(self) -> Int[np.ndarray, "rows length 3"]:
        """The frame, row and column of each token in its clip."""
        return self.pack([grid_positions(*grid).astype(np.int32) for grid in self.grids])

    def pack(self, clips: Sequence[Shaped[Array | np.ndarray, " _ *features"]]) -> Tokens:
        """Return the clips' tokens in rows, with zeros at padding.

        Args:
            clips: tokens of each clip, frame by frame and in row-major order.
        """
        sources = np.full((self.rows, self.length), sum(map(len, clips)))
        first = 0
        for clip, (row, start) in zip(clips, self.places, strict=True):
            sources[row, start : start + len(clip)] = first + np.arange(len(clip))
            first += len(clip)
        return _take(clips, sources)

    def unpack(self, tokens: Tokens) -> list[Shaped[Array | np.ndarray, " _ *features"]]:
        """Return the tokens of each clip, without padding."""
        return [
            tokens[row, start : start + math.prod(grid)]
            for grid, (row, start) in zip(self.grids, self.places, strict=True)
        ]

    def pack_conditions(
        self, values: Shaped[Array | np.ndarray, " clips *shape"]
    ) -> Shaped[Array | np.ndarray, "rows slots *shape"]:
        """Return what is known of each clip by its row and its number there, zeros elsewhere."""
        sources = np.full((self.rows, 1 + max(self.slots)), len(values))
        sources[[row for row, _ in self.places], self.slots] = np.arange(len(values))
        return _take([values], sources)


def segment_mask(
    segments: Int[Array | np.ndarray, "rows length"],
) -> Bool[Array, "rows 1 length length"]:
    """Return the mask by which tokens attend to their own clip alone.

    Padding attends to padding, so that every query attends somewhere.
    """
    segments = jnp.asarray(segments)[:, None]
    return segments[..., :, None] == segments[..., None, :]


def gather_slots(
    values: Shaped[Array, "rows slots *shape"], segments: Int[Array | np.ndarray, "rows length"]
) -> Shaped[Array, "rows length *shape"]:
    """Return each token's own of the values of a row's clips; at padding, those of slot 0."""
    return jax.vmap(lambda values, slots: values[jnp.maximum(slots, 0)])(values, segments)


def _take(parts: Sequence[Array | np.ndarray], sources: np.ndarray) -> Array | np.ndarray:
    """Return the entries `sources` of arrays one after the other, with zeros after the last."""
    library = jnp if any(isinstance(part, jax.Array) for part in parts) else np
    return library.concatenate([*parts, library.zeros_like(parts[0][:1])])[sources]
