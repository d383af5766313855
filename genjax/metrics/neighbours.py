"""Nearest neighbours among features, and by them how far samples are from the training set."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from genjax.metrics.border import as_matrix, check_same_width

BLOCK_ENTRIES = 2**24  # in one temporary array: 128 MiB in float64


def nearest(
    queries: Float[np.ndarray, "queries features"],
    points: Float[np.ndarray, "points features"],
    count: int = 1,
    radii: Float[np.ndarray, " points"] | float = 0.0,
) -> tuple[Int[np.ndarray, "queries {count}"], Float[np.ndarray, "queries {count}"]]:
    """Indices of the `count` points nearest to each query, in no order, and the distances to them.

    With `radii`, points are balls and the nearest minimises distance² − radius²: a query is inside some ball
    exactly when it is inside that one.

    A matrix product chooses the neighbours, since it is fast: |q − p|² = |q|² − 2 q·p + |p|². It cancels
    where q is close to p, so distances to the chosen are taken from differences: a duplicate is at exactly 0.
    Blocks of queries bound the memory.
    """
    centre = points.mean(0)  # a common offset of the features would only worsen the cancellation
    centred = points - centre
    offsets = np.einsum("pf,pf->p", centred, centred) - radii**2
    rows = max(1, BLOCK_ENTRIES // max(len(points), count * points.shape[1]))
    indices, distances = [], []
    for block in np.split(queries, range(rows, len(queries), rows)):
        ranks = offsets - 2 * (block - centre) @ centred.T  # |q|² is the same for all points
        chosen = np.argpartition(ranks, count - 1)[:, :count]
        indices.append(chosen)
        distances.append(np.linalg.norm(block[:, None] - points[chosen], axis=-1))
    return np.concatenate(indices), np.concatenate(distances)


def nearest_neighbour_ratio(
    samples: Float[ArrayLike, "samples features"],
    train: Float[ArrayLike, "train features"],
    held_out: Float[ArrayLike, "held_out features"],
) -> float:
    """Mean distance of samples to their nearest training examples, over that of held-out examples.

    1: samples are as far from the training set as unseen real data. 0: every sample is a training example. A
    share c of copies lowers it by about c, which a ratio of medians would not show until half were copies.
    Samples far from all data raise it: read it beside precision.

    Raises:
        ValueError: not [examples features], no examples, not finite, unequal numbers of features, or all of
            held_out is in train, so that there is nothing to compare with.
    """
    samples, train = as_matrix(samples, "samples"), as_matrix(train, "train")
    held_out = as_matrix(held_out, "held_out")
    check_same_width(samples=samples, train=train, held_out=held_out)
    (_, to_samples), (_, to_held_out) = nearest(samples, train), nearest(held_out, train)
    if not to_held_out.any():
        raise ValueError(
            f"all {len(held_out)} rows of held_out are also in train; expected unseen data: pass its split"
        )
    return float(to_samples.mean() / to_held_out.mean())
