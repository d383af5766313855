"""Confidence intervals of measures, over samples or over seeds."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.stats` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix, check_finite
from genjax.metrics.density_coverage import density_coverage
from genjax.metrics.kernel_distance import kernel_distance
from genjax.metrics.neighbours import memorization
from genjax.metrics.precision_recall import precision_recall

# Repeated examples would be each other's neighbours, or pairs that these measures leave out.
BY_PAIRS = kernel_distance, precision_recall, density_coverage, memorization


def bootstrap_interval(
    measure: Callable[..., float],
    *features: Float[ArrayLike, "_ features"],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a confidence interval of a measure by resampling its examples: the basic bootstrap.

    With measures m* of resampled examples and m of the examples, it is [2m − q, 2m − p] for the
    quantiles p and q of m*. The Fréchet distance m* exceeds m by about the bias of m. So this is an
    interval of the distance at infinitely many examples, and may reach below 0. An interval [p, q]
    would be off by twice the bias.

    Resampling repeats examples. Do not use this interval for measures by nearest neighbours, such
    as precision, because repeated examples are neighbours of each other. Do not use it for
    `kernel_distance` either: the estimate leaves out the pair of an example with itself, and a
    repeated example brings this pair back. Take the interval of such measures from seeds
    (`seed_interval`).

    Args:
        measure: a function of all `features` that returns one number. Choose one of several, as in
            `lambda logits: inception_score(logits)[0]`.
        features: arrays whose rows are resampled, each array by itself.
        confidence: the share of intervals that contain the true value.

    Raises:
        ValueError: no features are given, or they are not finite `[examples features]`; `resamples`
            is below 1, or the confidence is not between 0 and 1; or the measure is one of
            `BY_PAIRS`, is not finite, or returns several numbers.

    Source: Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 5.2.
    """
    if not features:
        raise ValueError("there are no features to resample; pass the arrays that measure takes")
    if measure in BY_PAIRS:
        raise ValueError(
            f"resampled examples repeat, and {measure.__name__} would count copies as neighbours "
            "or pairs: take its interval from seeds (seed_interval)"
        )
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected 1 or more, such as 1000")
    _check(confidence)
    arrays = [as_matrix(each, "features") for each in features]
    measured = measure(*arrays)
    if np.ndim(measured):
        raise ValueError(
            f"the measure returns {np.size(measured)} numbers; expected one: choose one of them, "
            "as in lambda logits: inception_score(logits)[0]"
        )
    generator = np.random.default_rng(seed)
    draw = lambda array: array[generator.integers(len(array), size=len(array))]
    resampled = [measure(*map(draw, arrays)) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    check_finite(np.array([measured, *resampled]), "the measure of features")
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(2 * measured - high), float(2 * measured - low)


def seed_interval(
    values: Sequence[float] | Float[np.ndarray, " seeds"], confidence: float = 0.95
) -> tuple[float, float]:
    """Return Student's confidence interval of the mean of values, one for each seed.

    With seeds of training, it is an interval of the method. With seeds of sampling, it is an
    interval of one trained network.

    Raises:
        ValueError: there are fewer than two values, one is not finite, or the confidence is not
            between 0 and 1.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values have shape {values.shape}; expected [seeds], of 2 seeds or more")
    check_finite(values, "values")
    _check(confidence)
    deviation = values.std(ddof=1) / np.sqrt(len(values))
    reach = scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * deviation
    return float(values.mean() - reach), float(values.mean() + reach)


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a share between 0 and 1, as 0.95")
