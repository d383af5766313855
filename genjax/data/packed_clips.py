"""Batches of rows that hold clips of many lengths and sizes one after the other.

Dehghani et al. 2023, "Patch n' pack: NaViT"; Brooks et al. 2024 ("Sora") for video. Images are
clips of one frame. All batches have one shape, so a step compiles once (`genjax.nn.packing`).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Int, Shaped

from genjax.data.clip_buckets import ClipBucket, cut_clip
from genjax.data.dataset import Dataset
from genjax.data.loader import Batches
from genjax.data.transforms import Transform, compose
from genjax.nn.packing import Packing, Place


@dataclass(frozen=True)
class RowFormat:
    """The form of packed rows.

    Attributes:
        length: patches of a row.
        slots: the most clips that a row can have.
        patch_size: frames, rows and columns of a patch.
        frames: lengths that clips are cut to. Clips of one size share the lengths that they are
            long enough for equally. Without lengths, clips stay whole.
    """

    length: int
    slots: int
    patch_size: tuple[int, int, int]
    frames: tuple[int, ...] = ()

    def abstract(
        self, entries: Mapping[str, jax.ShapeDtypeStruct], feature: str
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the entries of a row, given those of a clip, as shapes and types.

        Args:
            feature: the entry that has the clip itself.
        """
        clip = entries[feature]
        by_slot = {
            name: jax.ShapeDtypeStruct((self.slots, *a.shape), a.dtype)
            for name, a in entries.items()
        }
        patches = self.length, math.prod(self.patch_size), clip.shape[-1]
        return by_slot | {
            feature: jax.ShapeDtypeStruct(patches, clip.dtype),
            "segments": jax.ShapeDtypeStruct((self.length,), jnp.int32),
            "positions": jax.ShapeDtypeStruct((self.length, 3), jnp.int32),
        }

    def lengths(self, frames: int) -> list[int]:
        """Return the lengths to which clips of so many frames are cut."""
        return [each for each in self.frames if each <= frames] or [frames]

    def grid(self, size: ClipBucket) -> tuple[int, int, int]:
        """Return frames, rows and columns in patches; raise ValueError if they do not divide."""
        sides = zip(size, self.patch_size, strict=True)
        if min(size) < 1 or any(side % part for side, part in sides):
            clip, patch = ("×".join(map(str, each)) for each in (size, self.patch_size))
            raise ValueError(
                f"clips of {clip} (frames, rows, columns) do not divide into patches of {patch}: "
                "cut them to another size, or take other patches"
            )
        return tuple(side // part for side, part in zip(size, self.patch_size, strict=True))

    def patches(
        self, clip: Shaped[np.ndarray, "frames height width channels"]
    ) -> Shaped[np.ndarray, "patches elements channels"]:
        """Return the patches of a clip, frame by frame and in row-major order."""
        sizes = dict(zip("pqr", self.patch_size, strict=True))
        return rearrange(clip, "(t p) (h q) (w r) c -> (t h w) (p q r) c", **sizes)


class PackedClips(Batches):
    """`Batches` of rows of `layout`, in which clips of many lengths and sizes are packed.

    A batch has three kinds of entries:

    - `feature`: the clips' patches, `[rows length elements channels]`
    - `segments` and `positions` of the patches, as `Packing` has them
    - all other entries of the examples by slot, `[rows slots …]`

    The rows of an epoch are planned once, the longest clips first. In each epoch they come in a
    random order, and a random permutation of the clips of equal size fills them. So every epoch has
    every clip once, and the length that a clip is cut to changes from epoch to epoch. A batch is a
    function of (seed, step, global index), computed without visiting earlier steps.

    Args:
        dataset, seed, rows, transform: as for `Batches`. The transform is applied before a clip is
            cut.
        batch_size: the rows of a batch, of all processes together.
        sizes: frames, height and width of each clip. A clip of another height or width is resized
            and cropped (`cut_clip`); only bytes can be. A clip with more frames keeps the first.
        feature: the entry of examples that has the clip.

    Raises:
        ValueError: a clip does not fit in a row, or does not divide into patches; or there are
            fewer rows than a batch has.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        layout: RowFormat,
        sizes: Int[np.ndarray, "examples 3"],
        feature: str = "video",
        rows: np.ndarray | None = None,
        transform: Transform | None = None,
    ):
        super().__init__(dataset, batch_size, seed, transform=transform or compose(), rows=rows)
        self.layout, self.feature = layout, feature
        whole, of_kind = np.unique(sizes, axis=0, return_inverse=True)
        self._members = [np.flatnonzero(of_kind == kind) for kind in range(len(whole))]
        # Each clip of an epoch has a kind, a number among those of the kind, and a size.
        self._clips = [
            (kind, number, (lengths[number % len(lengths)], *size))
            for kind, (frames, *size) in enumerate(whole.tolist())
            for lengths in [layout.lengths(frames)]
            for number in range(len(self._members[kind]))
        ]
        grids = [layout.grid(size) for *_, size in self._clips]
        packing = Packing.of(grids, layout.length, slots=layout.slots)
        self._plan = [[] for _ in range(packing.rows)]
        for clip in sorted(range(len(grids)), key=packing.places.__getitem__):
            self._plan[packing.places[clip].row].append(clip)
        if batch_size > packing.rows:
            raise ValueError(
                f"batch size {batch_size} for the {packing.rows} rows of {layout.length} patches "
                f"that {dataset.name} ({dataset.split}) fills: take 1 to {packing.rows}"
            )
        self.real_tokens = sum(map(math.prod, grids)) / (packing.rows * layout.length)
        self._permutation = functools.lru_cache(4 * (1 + len(whole)))(self._permutation)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        positions = step * self.batch_size + self.rows
        rows = [self._row(position) for position in positions.tolist()]
        grids, places, patches, others = [], [], [], []
        for row, examples in enumerate(rows):
            start = 0
            for slot, (example, size) in enumerate(examples):
                clip = self.layout.patches(_cut(example[self.feature], size))
                grids.append(self.layout.grid(size))
                places.append(Place(row, slot, start))
                patches.append(clip)
                others.append({name: a for name, a in example.items() if name != self.feature})
                start += len(clip)
        packing = Packing(
            tuple(grids), tuple(places), self.layout.length, len(rows), self.layout.slots
        )
        by_slot = {name: np.stack([each[name] for each in others]) for name in others[0]}
        return {name: packing.pack_conditions(a) for name, a in by_slot.items()} | {
            self.feature: packing.pack(patches),
            "segments": packing.segments,
            "positions": packing.positions,
        }

    def _row(self, position: int) -> Sequence[tuple[Mapping[str, np.ndarray], ClipBucket]]:
        """Return the examples of the row at a position of the stream, and the sizes to cut to."""
        epoch, offset = divmod(position, len(self._plan))
        row, examples = self._permutation(epoch, 0, len(self._plan))[offset], []
        for slot, clip in enumerate(self._plan[row]):
            kind, number, size = self._clips[clip]
            members = self._members[kind]
            index = int(members[self._permutation(epoch, 1 + kind, len(members))[number]])
            generator = np.random.default_rng((1, self.seed, position, slot))
            examples.append((self.transform(self._examples(index), generator), size))
        return examples

    def _permutation(self, epoch: int, number: int, length: int) -> Int[np.ndarray, " length"]:
        return np.random.default_rng((4, self.seed, epoch, number)).permutation(length)


def _cut(
    clip: Shaped[np.ndarray, "frames height width channels"], size: ClipBucket
) -> Shaped[np.ndarray, "length rows columns channels"]:
    """Return the first frames of a clip, resized and cropped to a size if they have another."""
    return clip[: size[0]] if clip.shape[1:3] == size[1:] else cut_clip(clip, size)
