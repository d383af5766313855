"""Nearest neighbours among features, and the distance of samples to the training set."""

from collections.abc import Iterator

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from genjax.metrics.border import as_matrix, check_same_width

BLOCK_ENTRIES = 2**24  # in one temporary array: 128 MiB in float64


def blocks(rows: np.ndarray, entries_per_row: int) -> Iterator[np.ndarray]:
    """Yield `rows` in pieces, so that an array with `entries_per_row` for each stays bounded."""
    size = max(1, BLOCK_ENTRIES // entries_per_row)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def nearest(
    queries: Float[np.ndarray, "queries features"],
    points: Float[np.ndarray, "points features"],
    count: int = 1,
    radii: Float[np.ndarray, " points"] | float = 0.0,
) -> tuple[Int[np.ndarray, "queries {count}"], Float[np.ndarray, "queries {count}"]]:
    """Return indices of the `count` points nearest to each query, unordered, and their distances.

    With `radii`, points are balls, and the nearest ball minimizes distance² − radius². So a query
    is inside some ball exactly if it is inside the nearest one.

    A matrix product chooses the neighbours, since it is fast: |q − p|² = |q|² − 2 q·p + |p|². It
    cancels where q is close to p, so the returned distances are computed from differences: a
    duplicate is at exactly 0. Blocks of queries bound the memory.
    """
    centre = points.mean(0)  # a common offset of the features would only worsen the cancellation
    centred = points - centre
    offsets = np.einsum("pf,pf->p", centred, centred) - radii**2
    indices, distances = [], []
    for block in blocks(queries, max(len(points), count * points.shape[1])):
        ranks = offsets - 2 * (block - centre) @ centred.T  # |q|² is the same for all points
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
) -> Int[np.ndarray, " queries"]:
    """Return how many of the balls of `radii` around `points` contain each query.

    The surface of a ball belongs to the ball. A matrix product finds the distances, as in
    `nearest`; distances within its rounding error of a surface are computed from differences.
    """
    centre = points.mean(0)
    centred = points - centre
    squares = np.einsum("pf,pf->p", centred, centred)
    counts = []
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
    return np.concatenate(counts)


def nearest_neighbour_ratio(
    samples: Float[ArrayLike, "samples features"],
    train: Float[ArrayLike, "train features"],
    held_out: Float[ArrayLike, "held_out features"],
) -> float:
    """Return the samples' mean distance to their nearest training example, over held-out examples'.

    At 1, samples are as far from the training set as unseen real data. At 0, every sample is a
    training example. A share c of copies lowers the ratio by about c; a ratio of medians would not
    show copies until half of the samples were copies. Samples far from all data raise it, so read
    it together with precision.

    Raises:
        ValueError: arrays are not finite `[examples features]` of equal width, one is empty, or all
            of held_out is in train, so that there is nothing to compare with.
    """
    samples, train = as_matrix(samples, "samples"), as_matrix(train, "train")
    held_out = as_matrix(held_out, "held_out")
    check_same_width(samples=samples, train=train, held_out=held_out)
    (_, to_samples), (_, to_held_out) = nearest(samples, train), nearest(held_out, train)
    if not to_held_out.any():
        raise ValueError(
            f"all {len(held_out)} rows of held_out are also in train; expected unseen data: "
            "pass its split"
        )
    return float(to_samples.mean() / to_held_out.mean())
