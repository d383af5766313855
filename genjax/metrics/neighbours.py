"""Nearest neighbours among features, and the distance of samples to the training set."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from genjax.metrics.border import as_matrix, check_same_width

BLOCK_ENTRIES = 2**24  # in one temporary array: 128 MiB in float64
MEMORIZED = 1 / 3  # of the distance to the second nearest training example, as in the paper


def blocks(rows: np.ndarray, entries_per_row: int) -> Iterator[np.ndarray]:
    """Yield `rows` in pieces, so that an array with `entries_per_row` for each stays bounded."""
    size = max(1, BLOCK_ENTRIES // entries_per_row)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def nearest(
    queries: Float[np.ndarray, "queries features"],
    points: Float[np.ndarray, "points features"],
    count: int = 1,
) -> tuple[Int[np.ndarray, "queries {count}"], Float[np.ndarray, "queries {count}"]]:
    """Return indices of the `count` points nearest to each query, unordered, and their distances.

    A matrix product chooses the neighbours, since it is fast: |q − p|² = |q|² − 2 q·p + |p|². This
    formula loses digits where q is close to p, so the returned distances are computed from
    differences. A duplicate is at exactly 0. Blocks of queries bound the memory.
    """
    centre = points.mean(0)  # a common offset of the features would only worsen the cancellation
    centred = points - centre
    squares = np.einsum("pf,pf->p", centred, centred)
    indices, distances = [], []
    for block in blocks(queries, max(len(points), count * points.shape[1])):
        ranks = squares - 2 * (block - centre) @ centred.T  # |q|² is the same for all points
        chosen = np.argpartition(ranks, count - 1)[:, :count]
        indices.append(chosen)
        distances.append(np.linalg.norm(block[:, None] - points[chosen], axis=-1))
    return np.concatenate(indices), np.concatenate(distances)


def neighbour_radii(
    points: Float[np.ndarray, "points features"], k: int
) -> Float[np.ndarray, " points"]:
    """Return the distance of each point to its k-th nearest neighbour among the others."""
    _, distances = nearest(points, points, count=k + 1)  # a point's first neighbour is itself
    return distances.max(axis=1)


def containing_balls(
    queries: Float[np.ndarray, "queries features"],
    points: Float[np.ndarray, "points features"],
    radii: Float[np.ndarray, " points"],
) -> tuple[Int[np.ndarray, " queries"], Bool[np.ndarray, " points"]]:
    """Return how many balls of `radii` around `points` contain each query, and which have any.

    The surface of a ball belongs to the ball. A matrix product finds the distances, as in
    `nearest`; distances within its rounding error of a surface are computed from differences.
    """
    centre = points.mean(0)
    centred = points - centre
    squares = np.einsum("pf,pf->p", centred, centred)
    counts, filled = [], np.zeros(len(points), bool)
    for block in blocks(queries, len(points)):
        moved = block - centre
        lengths = np.einsum("qf,qf->q", moved, moved)[:, None]
        gaps = lengths - 2 * moved @ centred.T + (squares - radii**2)
        inside = gaps < 0
        # The error of a sum of n products is at most n ulp of the squared lengths, which radii do
        # not exceed by much.
        rounding = 8 * (points.shape[1] + 2) * np.finfo(np.float64).eps * (lengths + squares.max())
        for close in blocks(np.argwhere(np.abs(gaps) <= rounding), points.shape[1]):
            query, ball = close.T
            inside[query, ball] = (
                np.linalg.norm(block[query] - points[ball], axis=-1) <= radii[ball]
            )
        counts.append(inside.sum(axis=1))
        filled |= inside.any(axis=0)
    return np.concatenate(counts), filled


class Memorization(NamedTuple):
    """How near samples are to the training set. Read it together with precision.

    Attributes:
        nearest_neighbour_ratio: the samples' mean distance to their nearest training example, over
            that of held-out examples. At 1, samples are as far from the training set as unseen real
            data. At 0, every sample is a training example. A share c of copies lowers the ratio by
            about c. Samples far from all data raise the ratio, and can hide copies.
        memorized_share: the share of samples that copy a training example: their distance to the
            nearest one is at most a third of that to the second nearest. A copy of an example that
            has a near duplicate in the training set counts only if it is exact.
        memorized_share_real: the same share of held-out examples, which shows how often it happens
            by chance.
    """

    nearest_neighbour_ratio: float
    memorized_share: float
    memorized_share_real: float


def memorization(
    samples: Float[ArrayLike, "samples features"],
    train: Float[ArrayLike, "train features"],
    held_out: Float[ArrayLike, "held_out features"],
) -> Memorization:
    """Measure how near samples are to the training set, and how many of them are copies.

    Raises:
        ValueError: arrays are not finite `[examples features]` of equal width, samples or held_out
            are empty, train has fewer than 2 examples, or all of held_out is in train, so that
            there is nothing to compare with.

    Source: for the memorized share, Yoon et al. 2023, "Diffusion probabilistic models generalize
    when they fail to memorize".
    """
    samples, train = as_matrix(samples, "samples"), as_matrix(train, "train", at_least=2)
    held_out = as_matrix(held_out, "held_out")
    check_same_width(samples=samples, train=train, held_out=held_out)
    of_samples, of_held_out = (
        np.sort(nearest(queries, train, count=2)[1]) for queries in (samples, held_out)
    )
    if not of_held_out[:, 0].any():
        raise ValueError(
            f"all {len(held_out)} rows of held_out are also in train; expected unseen data: "
            "pass its split"
        )
    copied = lambda distances: float((distances[:, 0] <= MEMORIZED * distances[:, 1]).mean())
    ratio = of_samples[:, 0].mean() / of_held_out[:, 0].mean()
    return Memorization(float(ratio), copied(of_samples), copied(of_held_out))
