"""Batches of images that vary in size and proportions: those of one batch share a bucket, a height and width.

A batch is still a function of (seed, step, global index). A compiled step is a program for one shape, so each bucket
compiles its own, at the first of its batches: as many programs as buckets that are used (`aspect_buckets` says how
many that is), each from then on as fast as any. Transformers of patches take all of them with the same parameters;
their positions are interpolated (PixArt), cropped from a larger grid (MMDiT) or go on (FLUX).
"""

import bisect
import functools
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from genjax.data.dataset import Dataset, OnDisk, num_threads, stack
from genjax.data.images import PROGRESS_SECONDS
from genjax.data.loader import Batches
from genjax.data.transforms import Example, Transform, compose

Bucket = tuple[int, int]  # height and width
SMALLEST_AREA = 0.9  # of the area asked for; from 1024² pixels in steps of 64 it makes the buckets of SDXL
CHUNK = 1024  # sizes that a thread finds at once


def aspect_buckets(pixels: int, multiple: int, max_ratio: float) -> tuple[Bucket, ...]:
    """All (height, width), multiples of `multiple`, of 0.9 to 1 times `pixels`; from wide to high.

    Of one area, so that batches of all cost about the same. How many there are depends on √pixels/multiple and on the
    ratio: 41 at 16 and a ratio of 4 (1024² pixels in steps of 64), 11 at 8 and a ratio of 3. Finer steps than that
    make many programs and hardly better crops.

    Args:
        multiple: of the pixels of a patch, those that an autoencoder takes away included.
        max_ratio: of the longer side to the shorter one.

    Raises:
        ValueError: there are none.

    Source: Podell et al., SDXL (2023), section 2.3 and appendix I; the rule is read off its table.
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
            f"no sides that are multiples of {multiple} have an area of {SMALLEST_AREA} to 1 times {pixels} pixels and a "
            f"ratio of at most {max_ratio}: take a smaller multiple, or the square of a multiple of it as pixels"
        )
    return tuple(sorted(buckets, key=lambda bucket: bucket[0] / bucket[1]))


def nearest_buckets(
    sizes: Int[np.ndarray, "examples 2"], buckets: Sequence[Bucket]
) -> Int[np.ndarray, " examples"]:
    """For each height and width the number of the bucket whose ratio is nearest, by the logarithm.

    Of buckets of the same ratio the one whose area is nearest, by the logarithm too.
    """
    ratios, areas = _log_ratio_and_area(np.asarray(buckets))

    def nearest(sizes: np.ndarray) -> np.ndarray:
        own_ratios, own_areas = _log_ratio_and_area(sizes)
        far = np.abs(own_ratios[:, None] - ratios)
        tied = far <= far.min(axis=1, keepdims=True) + 1e-9  # rounding errors are 1e-15
        return np.where(tied, np.abs(own_areas[:, None] - areas), np.inf).argmin(axis=1)

    return np.concatenate([nearest(sizes[i : i + CHUNK]) for i in range(0, len(sizes), CHUNK)])


def _log_ratio_and_area(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = np.log(sizes).T
    return height - width, height + width


def image_sizes(dataset: Dataset) -> Int[np.ndarray, "examples 2"]:
    """Height and width of every image, as few bytes read for it as possible, in threads.

    Of image files (`load_folder`) these are the headers; of other sets that vary in size every example is decoded, so keep
    what this returns (`np.save`).
    """
    count, shape = len(dataset.source), dataset.image_shape
    if shape is not None and None not in shape:
        return np.tile(np.array(shape[:2], np.int32), (count, 1))
    # TODO-MARK
    entries = getattr(dataset.source.records, "entries", None)

    def chunk(start: int) -> list[Bucket]:
        rows = range(start, min(start + CHUNK, count))
        if entries is None:
            return [dataset.source[row]["image"].shape[:2] for row in rows]
        return [stored_size(entries[row].path) for row in rows]

    sizes, told = [], time.monotonic()
    with ThreadPoolExecutor(num_threads()) as pool:
        for some in pool.map(chunk, range(0, count, CHUNK)):
            sizes += some
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                logging.getLogger(__name__).warning(
                    "%s (%s): sizes of %d of %d images found", dataset.name, dataset.split, len(sizes), count
                )
    return np.array(sizes, np.int32)
