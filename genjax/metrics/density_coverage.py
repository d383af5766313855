"""Density and coverage (Naeem et al. 2020).

Both ask about the balls around real examples that reach to their k-th nearest real neighbour. Density counts
for each sample in how many of these balls it is, so that a lone outlier's large ball counts as one, where for
precision it would be as good as all; coverage is the share of balls that hold a sample.
"""

from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_same_width
from genjax.metrics.neighbours import containing_balls, nearest, neighbour_radii


def density_coverage(
    samples: Float[ArrayLike, "samples features"],
    real: Float[ArrayLike, "real features"],
    k: int = 5,
) -> tuple[float, float]:
    """Density, 0 or more, and coverage, in [0, 1], of samples with respect to real data.

    For equal distributions the expected density is 1, and with N real examples and M samples the expected
    coverage 1 − (N−1)…(N−k) / ((N+M−1)…(N+M−k)), near 1 − (N/(N+M))ᵏ: .97 for N = M and k = 5. Density
    above 1 means samples crowd where real data is dense. The surface of a ball belongs to it.

    Raises:
        ValueError: k < 1, not [examples features], not finite, too few examples, unequal numbers of features.

    Source: Naeem et al. 2020, section 3.2.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more: the paper's value is 5")
    samples, real = as_matrix(samples, "samples"), as_matrix(real, "real", at_least=k + 1)
    check_same_width(samples=samples, real=real)
    radii = neighbour_radii(real, k)
    _, to_samples = nearest(real, samples)
    density = containing_balls(samples, real, radii).mean() / k
    return float(density), float((to_samples[:, 0] <= radii).mean())
