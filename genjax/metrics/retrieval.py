"""Whether an image shows what its caption says.

A scorer is fitted to real pairs of image and caption. The measure is how it ranks an image's own
caption.
"""

from collections.abc import Callable

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.special` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_same_width


def ridge_scorer(
    features: Float[ArrayLike, "images features"],
    embeddings: Float[ArrayLike, "captions embedding"],
    strength: float = 1.0,
) -> Callable[
    [Float[ArrayLike, "images features"], Float[ArrayLike, "captions embedding"]], np.ndarray
]:
    """Fit a ridge regression from standardized image features to embeddings of captions.

    The closed form (Hoerl & Kennard 1970) solves K + strength·1. K is the mean over features of the
    products of two images' features, so `strength` means the same for any number of features.

    Args:
        features: of training images, from a network that shares nothing with the generator.
        embeddings: of their captions, by a text encoder.

    Returns:
        `score(features, embeddings)`, `[images captions]`: cosines of predicted and given
        embeddings, after the training captions' mean is subtracted from both.

    Raises:
        ValueError: features and embeddings differ in number, are not finite matrices, or are fewer
            than 2 pairs. So does the score if a width differs from the one in training.
    """
    features, embeddings = as_matrix(features, "features", 2), as_matrix(embeddings, "embeddings")
    if len(features) != len(embeddings):
        raise ValueError(
            f"{len(features)} images and {len(embeddings)} captions; a pair needs one of each"
        )
    centre, deviation, mean = features.mean(0), features.std(0), embeddings.mean(0)
    deviation = np.where(deviation == 0, 1, deviation)
    standard = (features - centre) / deviation
    kernel = standard @ standard.T / standard.shape[1]
    dual = np.linalg.solve(kernel + strength * np.eye(len(kernel)), embeddings - mean)
    weights = standard.T @ dual / standard.shape[1]
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def score(features: ArrayLike, embeddings: ArrayLike) -> np.ndarray:
        features, embeddings = as_matrix(features, "features"), as_matrix(embeddings, "embeddings")
        check_same_width(images=features, training=centre)
        check_same_width(captions=embeddings, training=mean)
        return unit((features - centre) / deviation @ weights) @ unit(embeddings - mean).T

    return score


def retrieval_accuracy(scores: Float[ArrayLike, "images captions"], candidates: int = 10) -> float:
    """Return the probability that an image's own caption scores above candidates − 1 other
    captions.

    The others are drawn without replacement. Chance is 1/candidates, and a tie loses. The result is
    exact, without a draw. If b of the n − 1 others score below the own caption, it is
    C(b, m) / C(n − 1, m), with m = candidates − 1.

    Args:
        scores: of image i and caption j; the image's own caption is at i = j.

    Raises:
        ValueError: scores are not square, or there are fewer captions than candidates.
    """
    scores = as_matrix(scores, "scores")
    n, m = len(scores), candidates - 1
    if scores.shape != (n, n) or not 1 <= m < n:
        raise ValueError(
            f"scores {scores.shape} for {candidates} candidates: as many captions as images, and "
            "no fewer than candidates"
        )
    below = (scores < np.diag(scores)[:, None]).sum(1)
    chosen = below[below >= m]  # C(b, m)/C(n − 1, m) by logarithms of factorials; 0 where b < m
    gammaln = scipy.special.gammaln
    log_ratio = gammaln(chosen + 1) - gammaln(chosen - m + 1) - gammaln(n) + gammaln(n - m)
    return float(np.exp(log_ratio).sum() / n)
