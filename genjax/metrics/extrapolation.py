"""The Fréchet distance at infinitely many samples, by extrapolation (Chong & Forsyth 2020).

The distance of N samples is the distance of infinitely many plus a bias, which is proportional to
1/N once N is several times the number of features. Models have different biases, so equal numbers
of samples do not make their distances comparable.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix
from genjax.metrics.frechet import (
    feature_moments,
    frechet_distance,
    frechet_distance_from_moments,
)

NUM_COUNTS = 15  # numbers of samples on the line, as in the paper


class Extrapolation(NamedTuple):
    """A line through Fréchet distances over the inverse of the number of samples.

    Attributes:
        distance: at infinitely many samples, FD∞. It may be negative for equal distributions.
        slope: the bias of N samples is `slope / N`.
        counts, distances: the points of the line.
    """

    distance: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


def extrapolated_frechet_distance(
    features_a: Float[ArrayLike, "examples_a features"],
    features_b: Float[ArrayLike, "examples_b features"],
    least: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolate the Fréchet distance to infinitely many examples on both sides.

    Each point of the line compares equal numbers of examples of both sides, in random subsets. This
    also removes the bias of a small reference set, which the paper's method leaves.

    Args:
        least: the size of the smallest subsets. None takes a tenth of the examples, as in the
            paper, but at least twice the number of features.
        seed: of the subsets.

    Raises:
        ValueError: arrays are not finite `[examples features]` of equal width, or hold fewer
            examples than two times `least`.

    Source: Chong & Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find
    them", section 4.
    """
    features_a = as_matrix(features_a, "features_a")
    features_b = as_matrix(features_b, "features_b")
    generator = np.random.default_rng(seed)
    subset = lambda features, count: features[generator.permutation(len(features))[:count]]
    most = min(len(features_a), len(features_b))
    counts = _counts(most, features_a.shape[1], least)
    return _line(counts, lambda n: frechet_distance(subset(features_a, n), subset(features_b, n)))


def extrapolated_frechet_distance_from_moments(
    features: Float[ArrayLike, "examples features"],
    mean: Float[ArrayLike, " features"],
    covariance: Float[ArrayLike, "features features"],
    least: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolate the Fréchet distance to a Gaussian, such as published reference statistics.

    Arguments and errors are those of `extrapolated_frechet_distance`. The bias of the reference
    statistics stays, as in the paper.
    """
    features = as_matrix(features, "features")
    generator = np.random.default_rng(seed)

    def distance(count):
        moments = feature_moments([features[generator.permutation(len(features))[:count]]])
        return frechet_distance_from_moments(*moments, mean, covariance)

    return _line(_counts(*features.shape, least), distance)


def _counts(most: int, width: int, least: int | None) -> np.ndarray:
    """Return the numbers of examples of the points, in equal steps."""
    least = max(most // 10, 2 * width) if least is None else least
    if least < 2 or 2 * least > most:
        raise ValueError(
            f"{most} examples of {width} features cannot be extrapolated from subsets of {least}; "
            "expected at least two times as many examples: pass more, or fewer features"
        )
    return np.linspace(least, most, NUM_COUNTS).astype(int)


def _line(counts: np.ndarray, distance: Callable[[int], float]) -> Extrapolation:
    distances = np.array([distance(count) for count in counts])
    slope, intercept = np.polyfit(1 / counts, distances, 1)
    return Extrapolation(float(intercept), float(slope), counts, distances)
