"""Batches of images that vary in size and proportions: all of one batch share a bucket, a height and width.

A compiled step is a program for one shape, so every bucket compiles its own, at the first of its batches: as
many programs as there are buckets with examples, each as fast as if it were the only one. A network has the
same variables for all: in transformers of patches, positions are interpolated (PixArt), cropped from a
larger grid (MMDiT) or simply go on (FLUX).
"""

import bisect
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, Int32, UInt8

from genjax.data.dataset import Dataset, InMemory, OnDisk, num_threads, stack
from genjax.data.images import PROGRESS_SECONDS
from genjax.data.loader import Batches
from genjax.data.transforms import Example, Transform, center_crop, compose, resize

Bucket = tuple[int, int]  # height, width
SMALLEST_AREA = (
    0.9  # of the area asked for; of 1024² pixels and multiples of 64 it makes the buckets of SDXL
)
CHUNK = 1024  # sizes found by a thread at a time


def aspect_buckets(pixels: int, multiple: int, max_ratio: float) -> tuple[Bucket, ...]:
    """All (height, width) in multiples of `multiple` that have 0.9 to 1 times `pixels`, the widest first.

    The smaller `multiple` is beside √pixels the more there are: of 1024² pixels and a ratio of at most 4
    there are 41 in multiples of 64, and 580 in multiples of 16, each of which would compile a program of its
    own.

    Args:
        multiple: in pixels; itself one of what the network's patch covers, with an autoencoder its factor
            times the patch.
        max_ratio: of the longer side to the shorter one, at most.

    Raises:
        ValueError: there are none.

    Source: Podell et al., SDXL (2023), section 2.3; the 0.9 is read off the table of appendix I.
    """
    sides = range(multiple, math.isqrt(math.ceil(pixels * max_ratio)) + 1, multiple)
    buckets = [
        (height, width)
        for height in sides
        for width in sides
        if SMALLEST_AREA * pixels <= height * width <= pixels
        and max(height, width) <= max_ratio * min(height, width)
    ]
    if not buckets:
        raise ValueError(
            f"no multiples of {multiple} make an area of {SMALLEST_AREA} to 1 times {pixels} pixels at a "
            f"ratio of at most {max_ratio}: take a smaller multiple, or as pixels the square of one"
        )
    return tuple(sorted(buckets, key=lambda bucket: bucket[0] / bucket[1]))


def nearest_buckets(
    sizes: Int[np.ndarray, "examples 2"], buckets: Sequence[Bucket]
) -> Int[np.ndarray, " examples"]:
    """For each (height, width) the number of the bucket whose ratio is nearest in logarithm.

    Of buckets with the same ratio it is the one whose area is nearest, in logarithm too.
    """
    ratios, areas = _log_ratios_and_areas(np.array(buckets))

    def nearest(sizes: Int[np.ndarray, "examples 2"]) -> Int[np.ndarray, " examples"]:
        own_ratios, own_areas = _log_ratios_and_areas(sizes)
        distances = np.abs(own_ratios[:, None] - ratios)
        tied = (
            distances <= distances.min(axis=1, keepdims=True) + 1e-9
        )  # logarithms are rounded to 1e-15
        return np.where(tied, np.abs(own_areas[:, None] - areas), np.inf).argmin(axis=1)

    return np.concatenate([nearest(sizes[i : i + CHUNK]) for i in range(0, len(sizes), CHUNK)])


def _log_ratios_and_areas(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heights, widths = np.log(sizes).T
    return heights - widths, heights + widths


def image_sizes(dataset: Dataset) -> Int32[np.ndarray, "examples 2"]:
    """Height and width of all images, found in threads.

    Of image files (`load_folder`) only the headers are read. Of other sets whose images vary in size every
    example is decoded: keep what this returns then, and give it to `BucketedBatches`.

    Raises:
        ValueError: a set without images.
    """
    _require_images(dataset)
    count, shape = len(dataset.source), dataset.image_shape
    if None not in shape:
        return np.tile(np.array(shape[:2], np.int32), (count, 1))
    entries = getattr(dataset.source.records, "entries", None)

    def sizes_from(start: int) -> list[Bucket]:
        rows = range(start, min(start + CHUNK, count))
        if entries is None:
            return [dataset.source[row]["image"].shape[:2] for row in rows]
        return [stored_size(entries[row].path) for row in rows]

    sizes, told = [], time.monotonic()
    with ThreadPoolExecutor(num_threads()) as pool:
        for some in pool.map(sizes_from, range(0, count, CHUNK)):
            sizes += some
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                logging.getLogger(__name__).warning(
                    "%s (%s): sizes of %d of %d images found",
                    dataset.name,
                    dataset.split,
                    len(sizes),
                    count,
                )
    return np.array(sizes, np.int32)


def stored_size(path: str | os.PathLike) -> Bucket:
    """Height and width that `decode` gives an image file, by its header.

    What a header does not tell is that a PNG whose EXIF tag comes after its pixels is turned.
    """
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        # To ask a PNG without the tag would decode it; the size of a TIFF is that of the turned image.
        tagged = "exif" in image.info and image.format != "TIFF"
        turned = tagged and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def resize_and_crop(
    image: UInt8[np.ndarray, "height width channels"],
    bucket: Bucket,
    generator: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "rows columns channels"], Bucket]:
    """An image resized until it just covers a bucket, then cropped to it; and the crop's top and left.

    Resized with Pillow's antialiased bicubic filter; an image that is smaller is enlarged. One side then
    fits, and of the other the middle is taken, or with a generator a part drawn uniformly.

    Returns:
        The image `[*bucket channels]`, and (top, left) in pixels of the resized image.
    """
    from PIL import Image

    height, width, channels = image.shape
    scale = max(bucket[0] / height, bucket[1] / width)
    resized = round(height * scale), round(width * scale)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    pixels = np.asarray(picture.resize(resized[::-1], Image.Resampling.BICUBIC))
    margins = [side - wanted for side, wanted in zip(resized, bucket, strict=True)]
    top, left = (
        margin // 2 if generator is None else int(generator.integers(margin + 1))
        for margin in margins
    )
    pixels = pixels[top : top + bucket[0], left : left + bucket[1]]
    return pixels.reshape(*bucket, channels), (top, left)


@dataclasses.dataclass(frozen=True)
class _Resized:
    """Records with images resized and cropped to one size as they are read, by a transform that leaves nothing to chance."""

    source: InMemory | OnDisk
    transform: Transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.source[index], np.random.default_rng(0))


def _resized(size: Bucket, dataset: Dataset, transform: Transform) -> Dataset:
    _require_images(dataset)
    dtypes = {name: a.dtype for name, a in dataset.source[0].items()}
    source = OnDisk(_Resized(dataset.source, transform), dtypes)
    return dataclasses.replace(dataset, source=source, image_shape=(*size, dataset.image_shape[-1]))


def resized_to(size: Bucket, dataset: Dataset) -> Dataset:
    """The set with every image resized until it just covers `size` (height, width), and its middle cut out.

    Raises:
        ValueError: a set without images.
    """

    def transform(example, generator):
        return {**example, "image": resize_and_crop(example["image"], size)[0]}

    return _resized(size, dataset, transform)


def squared(side: int, dataset: Dataset) -> Dataset:
    """The set with every image resized and cropped to a square as the literature prepares ImageNet: `resize`, then
    `center_crop`.

    Raises:
        ValueError: a set without images.
    """
    return _resized((side, side), dataset, compose(resize(side), center_crop(side)))


class BucketedBatches(Batches):
    """`Batches` of images that vary in size: those of a batch are of one bucket, resized and cropped to it.

    An example belongs to the bucket of the nearest ratio (`nearest_buckets`). Beside what `Batches` has, a
    batch holds, as int32 `[rows 2]`, what a network may be told lest it draw small or cut pictures (Podell
    et al., SDXL, 2023, section 2.2): `size`, the height and width before resizing, and `crop`, how much was
    cut off at the top and the left, in pixels after resizing. Mirror in `transform`: after a mirroring in
    the compiled step `crop` would be that of the other side.

    The examples of a bucket are an endless stream, each epoch a fresh permutation, cut into batches. An
    epoch of the whole is made of those batches that end in this epoch of their bucket, in random order: what
    does not fill a batch is carried over to the next. So after each epoch every example has been seen as
    often as there were epochs, or once less; none is left out for good or repeated to fill a batch. A batch
    is a function of (seed, step, global index), found without walking there.

    Args:
        dataset, batch_size, seed, rows: as of `Batches`.
        buckets: (height, width) each, as `aspect_buckets` makes them; one nearest to no example is not used.
        sizes: height and width of all images, by which they get their buckets; by default
            `image_sizes(dataset)`.
        transform: `transform(example, generator) -> example`, as of `Batches`, but before the image is
            resized, so that `size` and `crop` are those of what it returns, also where it mirrors. It keeps
            bytes.
        random_crop: cut out a part drawn uniformly, not the middle.

    Raises:
        ValueError: a set without images, or of other images than bytes; no buckets; not as many sizes as
            examples; `batch_size` exceeds the examples of a bucket.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        buckets: Sequence[Bucket],
        sizes: Int[np.ndarray, "examples 2"] | None = None,
        rows: np.ndarray | None = None,
        transform: Transform | None = None,
        random_crop: bool = False,
    ):
        _require_images(dataset)
        if (dtype := dataset.source[0]["image"].dtype) != np.uint8:
            raise ValueError(
                f"images of {dataset.name} ({dataset.split}) are {dtype}; only bytes (uint8) can be resized"
            )
        super().__init__(dataset, batch_size, seed, transform=transform or compose(), rows=rows)
        if not buckets:
            raise ValueError(
                "no buckets: give a list of (height, width), as aspect_buckets makes it"
            )
        sizes = image_sizes(dataset) if sizes is None else sizes
        if len(sizes) != len(dataset.source):
            raise ValueError(
                f"sizes of {len(sizes)} images for the {len(dataset.source)} examples of {dataset.name} "
                f"({dataset.split}): give height and width of each, as image_sizes finds them"
            )
        self.buckets = tuple(buckets)
        self.random_crop = random_crop
        nearest = nearest_buckets(sizes, buckets)
        self._members = [np.flatnonzero(nearest == number) for number in range(len(buckets))]
        self._counts = np.array([len(members) for members in self._members])
        if few := {
            bucket: int(count)
            for bucket, count in zip(self.buckets, self._counts, strict=True)
            if 0 < count < batch_size
        }:
            raise ValueError(
                f"batch size {batch_size} exceeds the examples of buckets {few}: leave these out of "
                f"the list, and their examples go to the nearest of the others, or take batches of at most "
                f"{min(few.values())}"
            )
        # Threads run ahead into the next epoch, and batches begin in the last one.
        self._permutation = functools.lru_cache(4 * len(buckets))(self._permutation)
        self._order = functools.lru_cache(4)(self._order)

    def bucket(self, step: int) -> Bucket:
        """Height and width of the images of `self[step]`, on all processes."""
        return self.buckets[self._locate(step)[0]]

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        number, batch = self._locate(step)
        epochs, offsets = np.divmod(batch * self.batch_size + self.rows, self._counts[number])
        indices = [
            int(self._members[number][self._permutation(number, epoch)[offset]])
            for epoch, offset in zip(epochs.tolist(), offsets.tolist(), strict=True)
        ]
        positions = (step * self.batch_size + self.rows).tolist()
        return stack(
            [
                self._fitted(*each, self.buckets[number])
                for each in zip(indices, positions, strict=True)
            ]
        )

    def _locate(self, step: int) -> tuple[int, int]:
        """The number of the bucket of this step, and which of the bucket's batches it is."""
        # There is at least one batch in an epoch, so it is one of the first step + 1.
        epoch = (
            bisect.bisect_right(range(step + 2), step, key=lambda e: int(self._finished(e).sum()))
            - 1
        )
        finished, order = self._finished(epoch), self._order(epoch)
        offset = step - int(finished.sum())
        number = int(order[offset])
        return number, int(finished[number] + np.count_nonzero(order[:offset] == number))

    def _finished(self, epoch: int) -> Int[np.ndarray, " buckets"]:
        """Batches of each bucket before an epoch."""
        return epoch * self._counts // self.batch_size

    def _order(self, epoch: int) -> Int[np.ndarray, " batches"]:
        """The numbers of the buckets of an epoch's batches."""
        numbers = np.repeat(
            np.arange(len(self.buckets)), self._finished(epoch + 1) - self._finished(epoch)
        )
        return np.random.default_rng((2, self.seed, epoch)).permutation(numbers)

    def _permutation(self, number: int, epoch: int) -> Int[np.ndarray, " examples"]:
        return np.random.default_rng((3, self.seed, number, epoch)).permutation(
            self._counts[number]
        )

    def _fitted(self, index: int, position: int, bucket: Bucket) -> Example:
        generator = np.random.default_rng((1, self.seed, position))
        example = self.transform(self._examples(index), generator)
        image, crop = resize_and_crop(
            example["image"], bucket, generator if self.random_crop else None
        )
        return {
            **example,
            "image": image,
            "size": np.array(example["image"].shape[:2], np.int32),
            "crop": np.array(crop, np.int32),
        }


def _require_images(dataset: Dataset) -> None:
    if len(dataset.image_shape or ()) != 3:
        raise ValueError(
            f"buckets are for images; the image_shape of {dataset.name} ({dataset.split}) is "
            f"{dataset.image_shape}, and would be (height, width, channels), with None where sizes vary"
        )
