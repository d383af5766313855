"""Batches of clips that vary in length, size and proportions.

All clips of one batch share a bucket: a number of frames, a height and a width. Buckets of one
frame hold pictures, so images and videos train one network.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from genjax.data.buckets import (
    BucketedBatches,
    check_sizes,
    nearest_buckets,
    resize_and_crop,
    transformed,
)
from genjax.data.dataset import Dataset, OnDisk
from genjax.data.transforms import Example

ClipBucket = tuple[int, int, int]  # frames, height, width


def nearest_clip_buckets(
    sizes: Int[np.ndarray, "examples 3"], buckets: Sequence[ClipBucket]
) -> Int[np.ndarray, " examples"]:
    """Return for each (frames, height, width) the index of the bucket that takes the most of it.

    It is the longest bucket that the clip fills. Among buckets of the same length, it is that of
    the nearest ratio, as `nearest_buckets` finds it.

    Raises:
        ValueError: a clip is shorter than all buckets, or sizes are not `[examples 3]` of 1 or
            more.
    """
    check_sizes(sizes, 3)
    lengths = np.unique([frames for frames, _, _ in buckets])
    if sizes[:, 0].min() < lengths[0]:
        raise ValueError(
            f"{np.sum(sizes[:, 0] < lengths[0])} clips have fewer than {lengths[0]} frames, those "
            "of the shortest bucket; leave these clips out, or add a shorter bucket"
        )
    longest = lengths[np.searchsorted(lengths, sizes[:, 0], side="right") - 1]
    nearest = np.zeros(len(sizes), int)
    for length in np.unique(longest):
        places = [place for place, bucket in enumerate(buckets) if bucket[0] == length]
        members, alike = longest == length, [tuple(buckets[place][1:]) for place in places]
        nearest[members] = np.array(places)[nearest_buckets(sizes[members, 1:], alike)]
    return nearest


def clip_sizes(dataset: Dataset) -> Int[np.ndarray, "examples 3"]:
    """Return the frames, height and width of all clips.

    Those of files (`load_clips`) are known since the set was opened. Other sets whose clips vary in
    size are decoded.

    Raises:
        ValueError: the set has no clips.
    """
    _require_clips(dataset)
    count, shape = len(dataset.source), dataset.image_shape
    if None not in shape:
        return np.tile(np.array(shape[:3]), (count, 1))
    if (known := getattr(dataset.source.records, "shapes", None)) is not None:
        return np.array([each["video"][:3] for each in known])
    return np.array([dataset.source[row]["video"].shape[:3] for row in range(count)])


def cut_clip(
    clip: UInt8[np.ndarray, "frames height width channels"],
    bucket: ClipBucket,
    seed: Sequence[int] | None = None,
) -> UInt8[np.ndarray, "length rows columns channels"]:
    """Cut successive frames of a clip, and resize and crop all of them alike.

    Without a seed these are the first frames and their middle. A seed draws the first frame and the
    crop.

    Raises:
        ValueError: the clip has too few frames.
    """
    length, *size = bucket
    if len(clip) < length:
        raise ValueError(
            f"a clip of {len(clip)} frames is too short for {length}; leave it out, or take a "
            "shorter bucket"
        )
    start = 0 if seed is None else np.random.default_rng(seed).integers(len(clip) - length + 1)
    # Each frame gets a generator of its own in the same state, and so the same crop.
    generator = lambda: None if seed is None else np.random.default_rng((*seed, 1))
    frames = clip[start : start + length]
    return np.stack([resize_and_crop(frame, tuple(size), generator())[0] for frame in frames])


def cut_to(bucket: ClipBucket, dataset: Dataset) -> Dataset:
    """Return the set with every clip cut to one bucket, its first frames and their middle.

    Clips that are too short are left out, with a warning: sets for buckets of several lengths have
    them.

    Raises:
        ValueError: the set has no clips, or all are too short.
    """
    _require_clips(dataset)
    rows = np.flatnonzero(clip_sizes(dataset)[:, 0] >= bucket[0])
    title, count = f"{dataset.name} ({dataset.split})", len(dataset.source)
    if not len(rows):
        raise ValueError(f"all clips of {title} have fewer than {bucket[0]} frames: take fewer")
    if len(rows) < count:
        logging.getLogger(__name__).warning(
            "%s: left out %d of %d clips, which have fewer than %d frames",
            *(title, count - len(rows), count, bucket[0]),
        )
        dataset = _chosen(dataset, rows)
    cut = lambda example, generator: {**example, "video": cut_clip(example["video"], bucket)}
    return transformed(dataset, (*bucket, dataset.image_shape[-1]), cut)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Some rows of records."""

    records: Any
    rows: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.records[int(self.rows[index])]


def _chosen(dataset: Dataset, rows: Int[np.ndarray, " rows"]) -> Dataset:
    """Return some examples of a set that is read record by record."""
    source = OnDisk(_Chosen(dataset.source.records, rows), dataset.source.dtypes)
    captions = dataset.captions and [dataset.captions[row] for row in rows]
    return dataclasses.replace(dataset, source=source, captions=captions)


class BucketedClips(BucketedBatches):
    """`BucketedBatches` of clips, by their `video`.

    A batch has a `size` for each clip, its frames, height and width before the clip was cut.

    Args:
        dataset, batch_size, seed, rows, transform: as for `BucketedBatches`.
        buckets: (frames, height, width) each.
        sizes: those of all clips; by default `clip_sizes(dataset)`.
        random_crop: whether to draw the first frame and the crop.

    Raises:
        ValueError: as of `BucketedBatches` and `nearest_clip_buckets`.
    """

    feature = "video"
    _sizes = staticmethod(clip_sizes)
    _nearest = staticmethod(nearest_clip_buckets)

    @staticmethod
    def _check(dataset: Dataset) -> None:
        _require_clips(dataset)

    def _prepared(self, index: int, position: int, bucket: ClipBucket) -> Example:
        seed = 1, self.seed, position
        example = self.transform(self._examples(index), np.random.default_rng(seed))
        # Another seed, because the transform's draws would decide the first frame, too.
        video = cut_clip(example["video"], bucket, (*seed, 1) if self.random_crop else None)
        size = np.array(example["video"].shape[:3], np.int32)
        return {**example, "video": video, "size": size}


def _require_clips(dataset: Dataset) -> None:
    if len(dataset.image_shape or ()) != 4:
        raise ValueError(
            f"these buckets are for clips; the image_shape of {dataset.name} ({dataset.split}) is "
            f"{dataset.image_shape}, but must be (frames, height, width, channels), with None "
            "where sizes vary"
        )
