"""Improved precision and recall (Kynkäänniemi et al. 2019).

The manifold of a set of features is the union of balls, one around each feature vector, that reach
to its k-th nearest neighbour in the set. Precision is the share of samples on the manifold of real
data. Recall is the share of real data on the manifold of samples.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_same_width
from genjax.metrics.neighbours import containing_balls, neighbour_radii


def precision_recall(
    samples: Float[ArrayLike, "samples features"],
    real: Float[ArrayLike, "real features"],
    k: int = 3,
) -> tuple[float, float]:
    """Return precision and recall of samples with respect to real data, both in [0, 1].

    The surface of a ball belongs to the ball. Both depend on k and on the numbers of examples (the
    paper takes 50,000 of each), so compare only values of equal k and equal numbers.

    Raises:
        ValueError: k < 1, arrays are not finite `[examples features]` of equal width, or there
            are too few examples.

    Source: Kynkäänniemi et al. 2019, equations 1 and 2.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more: the paper's value is 3")
    samples = as_matrix(samples, "samples", at_least=k + 1)
    real = as_matrix(real, "real", at_least=k + 1)
    check_same_width(samples=samples, real=real)
    return _share_on_manifold(samples, real, k), _share_on_manifold(real, samples, k)


def _share_on_manifold(queries: np.ndarray, points: np.ndarray, k: int) -> float:
    counts, _ = containing_balls(queries, points, neighbour_radii(points, k))
    return float((counts > 0).mean())
