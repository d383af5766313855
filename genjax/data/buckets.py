"""Batches of images that vary in size and proportions.

All images of one batch share a bucket: a height and a width. A compiled step serves one shape, so
each bucket with examples compiles one program, at its first batch. Each program is as fast as if it
were the only one. The network has the same variables for all buckets. Transformers of patches
handle positions in three ways: they interpolate them (PixArt), crop them from a larger grid (MMDiT)
or extend them (FLUX).
"""

import bisect
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, Int32, UInt8

from genjax.data.dataset import Dataset, InMemory, OnDisk, num_threads, stack
from genjax.data.images import with_messages
from genjax.data.loader import Batches
from genjax.data.transforms import Example, Transform, center_crop, compose, resize

Bucket = tuple[int, int]  # height, width
# Share of the given area. SDXL's buckets follow from 0.9 with 1024² pixels and multiples of 64.
SMALLEST_AREA = 0.9
CHUNK = 1024  # sizes that a thread finds at a time
# Parts of a header that may say how an image is turned: EXIF, its older form in PNG, and XMP.
ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}


def aspect_buckets(pixels: int, multiple: int, max_ratio: float) -> tuple[Bucket, ...]:
    """Return all (height, width) of 0.9 to 1 times `pixels`, the widest first.

    Both sides are multiples of `multiple`. A small `multiple` gives many buckets, and each bucket
    compiles a program of its own. 1024² pixels and a ratio of at most 4 give 41 buckets in
    multiples of 64, and 580 in multiples of 16.

    Args:
        pixels: the area of an image, in pixels.
        multiple: in pixels; must be a multiple of what one patch of the network covers. With an
            autoencoder that is the autoencoder's factor times the patch size.
        max_ratio: the largest ratio of the longer side to the shorter side.

    Raises:
        ValueError: no bucket fulfils the conditions.

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
            f"no multiples of {multiple} make an area of {SMALLEST_AREA} to 1 times {pixels} "
            f"pixels at a ratio of at most {max_ratio}: take a smaller multiple, or as pixels the "
            "square of a multiple"
        )
    return tuple(sorted(buckets, key=lambda bucket: bucket[0] / bucket[1]))


def nearest_buckets(
    sizes: Int[np.ndarray, "examples 2"], buckets: Sequence[Bucket]
) -> Int[np.ndarray, " examples"]:
    """Return for each (height, width) the index of the bucket with the nearest ratio.

    Ratios are compared by logarithm. Among buckets of the same ratio, the nearest area wins, also
    by logarithm.

    Raises:
        ValueError: sizes are not `[examples 2]` of 1 or more.
    """
    check_sizes(sizes, 2)
    ratios, areas = _log_ratios_and_areas(np.array(buckets))

    def nearest(sizes: Int[np.ndarray, "examples 2"]) -> Int[np.ndarray, " examples"]:
        own_ratios, own_areas = _log_ratios_and_areas(sizes)
        distances = np.abs(own_ratios[:, None] - ratios)
        # Logarithms are rounded to 1e-15.
        tied = distances <= distances.min(axis=1, keepdims=True) + 1e-9
        return np.where(tied, np.abs(own_areas[:, None] - areas), np.inf).argmin(axis=1)

    return np.concatenate([nearest(sizes[i : i + CHUNK]) for i in range(0, len(sizes), CHUNK)])


def check_sizes(sizes: np.ndarray, axes: int) -> None:
    """Raise ValueError unless sizes are those of one example or more."""
    if np.ndim(sizes) != 2 or np.shape(sizes)[1] != axes or not len(sizes) or np.min(sizes) < 1:
        raise ValueError(
            f"sizes have shape {np.shape(sizes)}; expected [examples {axes}] of 1 or more: one row "
            "for each example"
        )


def _log_ratios_and_areas(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heights, widths = np.log(sizes).T
    return heights - widths, heights + widths


def image_sizes(dataset: Dataset) -> Int32[np.ndarray, "examples 2"]:
    """Return the height and width of all images, found in threads.

    Image files (`load_folder`) are not decoded: only their headers are read. Other sets whose
    images vary in size are decoded completely. Keep the result in that case, and give it to
    `BucketedBatches`.

    Raises:
        ValueError: the set has no images.
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

    with ThreadPoolExecutor(num_threads()) as pool:
        sizes = itertools.chain.from_iterable(pool.map(sizes_from, range(0, count, CHUNK)))
        title = f"{dataset.name} ({dataset.split})"
        found = list(with_messages(sizes, count, title, "images measured"))
    return np.array(found, np.int32)


def stored_size(path: str | os.PathLike) -> Bucket:
    """Return the height and width that `decode` gives an image file, read from its header.

    One case is beyond the header: a PNG whose EXIF tag comes after its pixels. Its rotation is
    missed.
    """
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        # A PNG's own `getexif` may decode the pixels. A TIFF's size is that of the rotated image.
        tagged = ORIENTED & image.info.keys() and image.format != "TIFF"
        turned = tagged and Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def resize_and_crop(
    image: UInt8[np.ndarray, "height width channels"],
    bucket: Bucket,
    generator: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "rows columns channels"], Bucket]:
    """Resize an image until it just covers a bucket, and crop it to the bucket.

    Pillow's antialiased bicubic filter resizes; a smaller image is enlarged. One side then fits the
    bucket. The crop takes the middle of the other side, or with a generator a uniformly drawn part.

    Returns:
        The image `[*bucket channels]`, and (top, left) of the crop in pixels of the resized image.
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
    """Records whose examples a deterministic transform brings to one shape as they are read."""

    source: InMemory | OnDisk
    transform: Transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.source[index], np.random.default_rng(0))


def transformed(dataset: Dataset, shape: tuple[int, ...], transform: Transform) -> Dataset:
    """Return the set whose examples a deterministic transform brings to one shape."""
    dtypes = {name: a.dtype for name, a in dataset.source[0].items()}
    source = OnDisk(_Resized(dataset.source, transform), dtypes)
    return dataclasses.replace(dataset, source=source, image_shape=shape)


def _resized(size: Bucket, dataset: Dataset, transform: Transform) -> Dataset:
    _require_images(dataset)
    return transformed(dataset, (*size, dataset.image_shape[-1]), transform)


def resized_to(size: Bucket, dataset: Dataset) -> Dataset:
    """Return the set with every image resized until it just covers `size`, and center-cropped.

    Args:
        size: (height, width) in pixels.

    Raises:
        ValueError: the set has no images.
    """

    def transform(example, generator):
        return {**example, "image": resize_and_crop(example["image"], size)[0]}

    return _resized(size, dataset, transform)


def squared(side: int, dataset: Dataset) -> Dataset:
    """Return the set with every image resized and cropped to a square of `side` pixels.

    `resize` and `center_crop` do it, as the literature prepares ImageNet.

    Raises:
        ValueError: the set has no images.
    """
    return _resized((side, side), dataset, compose(resize(side), center_crop(side)))


class BucketedBatches(Batches):
    """`Batches` of images that vary in size; each batch is resized and cropped to one bucket.

    An example belongs to the bucket of the nearest ratio (`nearest_buckets`). A batch has two more
    arrays than `Batches` gives, both int32 `[rows 2]`. `size` is the height and width before
    resizing. `crop` is what was cut off at the top and the left, in pixels after resizing. A
    network conditioned on `size` and `crop` learns not to draw small or cropped pictures (Podell et
    al., SDXL, 2023, section 2.2). Mirror images in `transform`: after mirroring in the compiled
    step, `crop` would belong to the other side.

    The examples of a bucket form an endless stream, each epoch a fresh permutation, and the stream
    is cut into batches. Examples that do not fill a batch are carried over to the next epoch. An
    epoch of the whole set consists of the batches that end in this epoch of their bucket, in random
    order. So after n epochs every example has been seen n or n − 1 times; none is dropped or
    repeated. A batch is a function of (seed, step, global index), computed without visiting earlier
    steps.

    Args:
        dataset, batch_size, seed, rows: as for `Batches`.
        buckets: (height, width) each, as `aspect_buckets` makes them. A bucket that is nearest to
            no example is unused.
        sizes: height and width of all images, which decide their buckets; by default
            `image_sizes(dataset)`.
        transform: `transform(example, generator) -> example`, as for `Batches`, but applied before
            the image is resized. `size` and `crop` then describe the transformed image, even a
            mirrored one. The transform must keep the dtype uint8.
        random_crop: whether to crop a uniformly drawn part instead of the middle.

    Raises:
        ValueError: the set has no images, or images that are not uint8; there are no buckets; the
            numbers of sizes and examples differ; `batch_size` exceeds the number of examples of a
            bucket.
    """

    feature = "image"

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        buckets: Sequence[tuple[int, ...]],
        sizes: Int[np.ndarray, "examples sides"] | None = None,
        rows: np.ndarray | None = None,
        transform: Transform | None = None,
        random_crop: bool = False,
    ):
        self._check(dataset)
        if (dtype := dataset.source[0][self.feature].dtype) != np.uint8:
            raise ValueError(
                f"images of {dataset.name} ({dataset.split}) are {dtype}; "
                "only bytes (uint8) can be resized"
            )
        super().__init__(dataset, batch_size, seed, transform=transform or compose(), rows=rows)
        if not buckets:
            raise ValueError(
                "no buckets: give a list of (height, width), as aspect_buckets makes it"
            )
        sizes = self._sizes(dataset) if sizes is None else sizes
        if len(sizes) != len(dataset.source):
            raise ValueError(
                f"sizes of {len(sizes)} images for the {len(dataset.source)} examples of "
                f"{dataset.name} ({dataset.split}): give height and width of each, as image_sizes "
                "finds them"
            )
        self.buckets = tuple(buckets)
        self.random_crop = random_crop
        nearest = self._nearest(sizes, buckets)
        self._members = [np.flatnonzero(nearest == number) for number in range(len(buckets))]
        self._counts = np.array([len(members) for members in self._members])
        counts = zip(self.buckets, self._counts.tolist(), strict=True)
        if few := {bucket: count for bucket, count in counts if 0 < count < batch_size}:
            raise ValueError(
                f"batch size {batch_size} exceeds the examples of buckets {few}: leave these out "
                "of the list, and their examples go to the nearest other bucket, or take batches "
                f"of at most {min(few.values())}"
            )
        # Threads run ahead into the next epoch, and batches may begin in the previous epoch.
        self._permutation = functools.lru_cache(4 * len(buckets))(self._permutation)
        self._order = functools.lru_cache(4)(self._order)

    @staticmethod
    def _check(dataset: Dataset) -> None:
        """Raise ValueError if the set has none of the examples that these batches are of."""
        _require_images(dataset)

    _sizes = staticmethod(image_sizes)
    _nearest = staticmethod(nearest_buckets)

    def bucket(self, step: int) -> tuple[int, ...]:
        """Return the height and width of the images of `self[step]`, the same on all processes."""
        return self.buckets[self._locate(step)[0]]

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        number, batch = self._locate(step)
        epochs, offsets = np.divmod(batch * self.batch_size + self.rows, self._counts[number])
        indices = [
            int(self._members[number][self._permutation(number, epoch)[offset]])
            for epoch, offset in zip(epochs.tolist(), offsets.tolist(), strict=True)
        ]
        positions = (step * self.batch_size + self.rows).tolist()
        places, bucket = zip(indices, positions, strict=True), self.buckets[number]
        return stack([self._prepared(*each, bucket) for each in places])

    def _locate(self, step: int) -> tuple[int, int]:
        """Return the index of this step's bucket, and which of its batches the step takes."""
        # Every epoch has at least one batch, so the step lies in one of the first step + 1 epochs.
        before = lambda epoch: int(self._finished(epoch).sum())
        epoch = bisect.bisect_right(range(step + 2), step, key=before) - 1
        finished, order = self._finished(epoch), self._order(epoch)
        offset = step - int(finished.sum())
        number = int(order[offset])
        return number, int(finished[number] + np.count_nonzero(order[:offset] == number))

    def _finished(self, epoch: int) -> Int[np.ndarray, " buckets"]:
        """Return how many batches of each bucket end before an epoch."""
        return epoch * self._counts // self.batch_size

    def _order(self, epoch: int) -> Int[np.ndarray, " batches"]:
        """Return the bucket indices of an epoch's batches, in order."""
        counts = self._finished(epoch + 1) - self._finished(epoch)
        numbers = np.repeat(np.arange(len(self.buckets)), counts)
        return np.random.default_rng((2, self.seed, epoch)).permutation(numbers)

    def _permutation(self, number: int, epoch: int) -> Int[np.ndarray, " examples"]:
        generator = np.random.default_rng((3, self.seed, number, epoch))
        return generator.permutation(self._counts[number])

    def _prepared(self, index: int, position: int, bucket: Bucket) -> Example:
        generator = np.random.default_rng((1, self.seed, position))
        example = self.transform(self._examples(index), generator)
        cropping = generator if self.random_crop else None
        image, crop = resize_and_crop(example["image"], bucket, cropping)
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
            f"{dataset.image_shape}, but must be (height, width, channels), with None where sizes "
            "vary"
        )
