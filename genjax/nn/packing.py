"""Clips and images of any size as one batch: their patches packed in rows of equal length.

Dehghani et al. 2023, "Patch n' pack: NaViT"; Brooks et al. 2024 ("Sora") for video. A row holds
whole clips one after the other and ends with padding. An image is a clip of one frame.

    packing = Packing.of([(5, 4, 6), (1, 8, 8)], length=256)
    tokens = packing.pack([patches_of_clip, patches_of_image])  # [rows length features]
    outputs = attention(query, key, value, Segments.of(packing.segments, packing.segments))
    clip, image = packing.unpack(outputs)

The network is given `tokens`, `packing.segments` and `packing.positions`. Fix the numbers of rows
and slots: then shapes stay the same while clips change, and the network compiles once.
`genjax.data.PackedClips` makes batches of such rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from genjax.nn.rotary import grid_positions

Tokens = Shaped[Array | np.ndarray, "rows length *features"]


class Place(NamedTuple):
    """Where a clip lies: its row, its number in the row, and its first token."""

    row: int
    slot: int
    start: int


@dataclass(frozen=True)
class Packing:
    """The places of clips in rows of `length` tokens.

    Attributes:
        grids: frames, rows and columns of each clip, in patches.
        places: of each clip.
        length: number of tokens of a row.
        rows: number of rows.
        slots: number of clips that a row can have.
    """

    grids: tuple[tuple[int, int, int], ...]
    places: tuple[Place, ...]
    length: int
    rows: int
    slots: int

    @classmethod
    def of(
        cls,
        grids: Sequence[tuple[int, int, int]],
        length: int,
        rows: int | None = None,
        slots: int | None = None,
    ) -> "Packing":
        """Put each clip, the longest first, in the first row that has room for it.

        Args:
            rows, slots: as many as needed if None.

        Raises:
            ValueError: a clip is longer than a row, there are too few rows, or no slots.
        """
        sizes = [math.prod(grid) for grid in grids]
        if max(sizes) > length:
            raise ValueError(
                f"a clip of {max(sizes)} patches does not fit in a row of {length}: give longer "
                "rows or a smaller clip"
            )
        if slots is not None and slots < 1:
            raise ValueError(f"slots is {slots}; a row has place for 1 clip or more")
        waiting = {size: [] for size in sorted(set(sizes), reverse=True)}
        for clip in reversed(range(len(sizes))):
            waiting[sizes[clip]].append(clip)
        places, used = [Place(0, 0, 0)] * len(sizes), []  # used: clips of each row
        while any(waiting.values()):
            count = start = 0
            for size, clips in waiting.items():  # what the first row with room would get
                while clips and count != slots and start + size <= length:
                    places[clips.pop()] = Place(len(used), count, start)
                    count, start = count + 1, start + size
            used.append(count)
        if rows is not None and len(used) > rows:
            raise ValueError(
                f"{len(sizes)} clips need {len(used)} rows of {length} tokens, and there are "
                f"{rows}: give more rows or fewer clips"
            )
        slots = max(used) if slots is None else slots
        return cls(tuple(map(tuple, grids)), tuple(places), length, rows or len(used), slots)

    @property
    def segments(self) -> Int[np.ndarray, "rows length"]:
        """The slot of each token's clip, and −1 at padding.

        As `Segments`, padding attends to padding, so that every query attends somewhere.
        """
        of_clips = [
            np.full(math.prod(grid), place.slot + 1, np.int32)
            for grid, place in zip(self.grids, self.places, strict=True)
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
        for clip, (row, _, start) in zip(clips, self.places, strict=True):
            sources[row, start : start + len(clip)] = first + np.arange(len(clip))
            first += len(clip)
        return _take(clips, sources)

    def unpack(self, tokens: Tokens) -> list[Shaped[Array | np.ndarray, " _ *features"]]:
        """Return the tokens of each clip, without padding."""
        return [
            tokens[row, start : start + math.prod(grid)]
            for grid, (row, _, start) in zip(self.grids, self.places, strict=True)
        ]

    def pack_conditions(
        self, values: Shaped[Array | np.ndarray, " clips *shape"]
    ) -> Shaped[Array | np.ndarray, "rows slots *shape"]:
        """Return what is known of each clip by its row and slot, with zeros at empty slots."""
        sources = np.full((self.rows, self.slots), len(values))
        for clip, (row, slot, _) in enumerate(self.places):
            sources[row, slot] = clip
        return _take([values], sources)


def gather_slots(
    values: Shaped[Array, "rows slots *shape"], segments: Int[Array | np.ndarray, "rows length"]
) -> Shaped[Array, "rows length *shape"]:
    """Return each token's own of the values of a row's clips; at padding, those of slot 0."""
    return jax.vmap(lambda values, slots: values[jnp.maximum(slots, 0)])(values, segments)


def _take(parts: Sequence[Array | np.ndarray], sources: np.ndarray) -> Array | np.ndarray:
    """Return the entries `sources` of arrays one after the other, with zeros after the last."""
    library = jnp if any(isinstance(part, jax.Array) for part in parts) else np
    return library.concatenate([*parts, library.zeros_like(parts[0][:1])])[sources]
