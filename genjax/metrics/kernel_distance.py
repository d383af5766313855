"""The kernel distance between two sets of features.

With Inception features it is the KID (Bińkowski et al. 2018).
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_same_width
from genjax.metrics.neighbours import blocks


def kernel_distance(
    features_a: Float[ArrayLike, "examples_a features"],
    features_b: Float[ArrayLike, "examples_b features"],
) -> float:
    """Return the squared maximum mean discrepancy under k(x, y) = (x·y / features + 1)³.

        mean over i ≠ j of k(aᵢ, aⱼ) + mean over i ≠ j of k(bᵢ, bⱼ) − 2 · mean of k(aᵢ, bⱼ)

    Unlike the Fréchet distance, it is unbiased at any number of examples. So for equal
    distributions it scatters around 0, and may be negative. It depends on moments up to the third.

    Raises:
        ValueError: arrays are not finite `[examples features]` of equal width with at least 2
            examples.

    Source: Gretton et al. 2012, equation 3, with the kernel of Bińkowski et al. 2018, section 4.
    Bińkowski et al. average over subsets of 1,000, which has the same expectation and a greater
    variance.
    """
    features_a = as_matrix(features_a, "features_a", at_least=2)
    features_b = as_matrix(features_b, "features_b", at_least=2)
    check_same_width(features_a=features_a, features_b=features_b)
    across = _kernel_sum(features_a, features_b) / (len(features_a) * len(features_b))
    return float(_mean_of_distinct(features_a) + _mean_of_distinct(features_b) - 2 * across)


def _mean_of_distinct(features: np.ndarray) -> float:
    equal = _kernel(np.einsum("ef,ef->e", features, features), features.shape[1]).sum()
    return (_kernel_sum(features, features) - equal) / (len(features) * (len(features) - 1))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    return sum(_kernel(block @ b.T, a.shape[1]).sum() for block in blocks(a, len(b)))


def _kernel(products: np.ndarray, features: int) -> np.ndarray:
    return (products / features + 1) ** 3
