"""Density and coverage (Naeem et al. 2020).

Both use balls around real examples that reach to their k-th nearest real neighbour. Density counts
the balls that contain each sample. The large ball of a real outlier therefore counts as one ball
only. For precision, one such ball is enough. Coverage is the share of balls with a sample in it.
"""

from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_same_width
from genjax.metrics.neighbours import containing_balls, neighbour_radii


def density_coverage(
    samples: Float[ArrayLike, "samples features"],
    real: Float[ArrayLike, "real features"],
    k: int = 5,
) -> tuple[float, float]:
    """Return density, at least 0, and coverage, in [0, 1], of samples with respect to real data.

    For equal distributions the expected density is 1. The expected coverage of N real examples
    by M samples is 1 − (N−1)…(N−k) / ((N+M−1)…(N+M−k)), about 1 − (N/(N+M))ᵏ. It is 0.97 for
    N = M and k = 5. A density above 1 means that samples concentrate where real data are dense. The
    surface of a ball belongs to the ball, as in `precision_recall`. The authors' program leaves it
    out, which matters only for features with ties.

    Raises:
        ValueError: k < 1, arrays are not finite `[examples features]` of equal width, or there
            are too few examples.

    Source: Naeem et al. 2020, section 3.2.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more: the paper's value is 5")
    samples, real = as_matrix(samples, "samples"), as_matrix(real, "real", at_least=k + 1)
    check_same_width(samples=samples, real=real)
    counts, filled = containing_balls(samples, real, neighbour_radii(real, k))
    return float(counts.mean() / k), float(filled.mean())
