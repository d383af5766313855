"""The Fréchet distance between Gaussians fitted to two sets of features.

    d² = |mean_a − mean_b|² + tr A + tr B − 2 tr (A^½ B A^½)^½

for covariances A and B (Dowson & Landau 1982). With Inception features it is the FID (Heusel et al.
2017).

The last trace is the nuclear norm (the sum of singular values) of R_a R_bᵀ, for any roots
R_aᵀR_a = A and R_bᵀR_b = B. Singular values are real, non-negative and accurate at any rank. The
usual matrix square root of the product AB is none of these if a covariance is rank-deficient.
"""

from collections.abc import Iterable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_finite, check_same_width


def frechet_distance(
    features_a: Float[ArrayLike, "examples_a features"],
    features_b: Float[ArrayLike, "examples_b features"],
) -> float:
    """Return the Fréchet distance d² between two sets of features, in their squared unit.

    It is exact at any rank: with fewer examples than features, and with constant features. Its
    bias is upward and shrinks with the number of examples, so compare only values of equal
    numbers of examples.

    Raises:
        ValueError: arrays are not finite `[examples features]` of equal width with at least 2
            examples.

    Source: Heusel et al. 2017, equation 6.
    """
    features_a = as_matrix(features_a, "features_a", at_least=2)
    features_b = as_matrix(features_b, "features_b", at_least=2)
    check_same_width(features_a=features_a, features_b=features_b)
    root_a, root_b = _features_root(features_a), _features_root(features_b)
    return _distance(features_a.mean(0), root_a, features_b.mean(0), root_b)


def frechet_distance_from_moments(
    mean_a: Float[ArrayLike, " features"],
    covariance_a: Float[ArrayLike, "features features"],
    mean_b: Float[ArrayLike, " features"],
    covariance_b: Float[ArrayLike, "features features"],
) -> float:
    """Return the Fréchet distance d² between two Gaussians, such as published reference statistics.

    Pass moments in float64, as `feature_moments` returns them. Eigenvalues of a covariance below
    its rounding error count as zero here; `frechet_distance` still sees them in the features.

    Raises:
        ValueError: moments are not finite `[features]` and `[features features]` of equal width.

    Source: Dowson & Landau 1982.
    """
    mean_a, covariance_a = _as_moments(mean_a, covariance_a, "a")
    mean_b, covariance_b = _as_moments(mean_b, covariance_b, "b")
    check_same_width(mean_a=mean_a, mean_b=mean_b)
    return _distance(mean_a, _covariance_root(covariance_a), mean_b, _covariance_root(covariance_b))


def feature_moments(
    batches: Iterable[Float[ArrayLike, "_ features"]],
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, "features features"]]:
    """Return the mean and the unbiased covariance, in float64, of features that arrive in batches.

    Batches may differ in size. For one array of features, call `feature_moments([features])`.

    Raises:
        ValueError: batches are not finite `[examples features]` of equal width, or hold fewer than
            2 examples in all.

    Source: Chan, Golub & LeVeque 1979: the pairwise update, which does not cancel as sums of
    squares do.
    """
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        batch = as_matrix(batch, "a batch (one array goes in as [features])")
        if count:
            check_same_width(earlier_batches=mean, this_batch=batch)
        centred, shift = batch - batch.mean(0), batch.mean(0) - mean
        total = count + len(batch)
        scatter = (
            scatter + centred.T @ centred + np.outer(shift, shift) * (count * len(batch) / total)
        )
        mean = mean + shift * (len(batch) / total)
        count = total
    if count < 2:
        raise ValueError(
            f"the batches hold {count} examples in all; expected 2 or more: pass more examples"
        )
    return mean, scatter / (count - 1)


def _distance(
    mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray
) -> float:
    nuclear_norm = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    squared = (
        ((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * nuclear_norm
    )
    return max(float(squared), 0.0)  # rounding may take equal inputs below zero


def _features_root(features: np.ndarray) -> np.ndarray:
    """Return R with RᵀR the covariance.

    Centred features are such a root, and QR makes it square at most.
    """
    return np.linalg.qr(features - features.mean(0), mode="r") / np.sqrt(len(features) - 1)


def _covariance_root(covariance: np.ndarray) -> np.ndarray:
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    # A root turns a rounding error of 1e-16 into 1e-8, so eigenvalues below that error become 0.
    rounding = len(covariance) * np.finfo(np.float64).eps * eigenvalues[-1]
    return np.sqrt(np.where(eigenvalues > rounding, eigenvalues, 0.0))[:, None] * eigenvectors.T


def _as_moments(mean: ArrayLike, covariance: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    mean, covariance = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise ValueError(
            f"mean_{name} has shape {mean.shape} and covariance_{name} {covariance.shape}; "
            "expected [features] and [features features]: feature_moments gives both"
        )
    check_finite(mean, f"mean_{name}")
    check_finite(covariance, f"covariance_{name}")
    return mean, covariance
