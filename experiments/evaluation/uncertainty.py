"""The uncertainty of Fréchet distances: their bias by the number of samples, and intervals."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.evaluation.context import Context
from genjax import metrics
from genjax.metrics import Extrapolation

PER_FEATURE = 4  # least samples for each feature, so that extrapolation has a line of some length
EXTRAPOLATION = "FD∞: a line over 1/N through distances of N samples"


def standard_error(values: Float[np.ndarray, " examples"]) -> float:
    """Return the standard error of a mean of independent examples, NaN of one."""
    if len(values) == 1:
        return np.nan
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def check_resamples(
    measure: str, resamples: int, context: Context, width: int, *, takes_held_out: bool
) -> None:
    """Check before any training that there will be an interval.

    Args:
        resamples: the config's number of resamples, positive; errors name it.
        width: number of features.
        takes_held_out: whether the measure compares held-out examples with as many samples.

    Raises:
        ValueError: there are too few samples or held-out examples for this number of features.
    """
    least = PER_FEATURE * width
    wanted = f"{measure} has resamples={resamples}, and an interval of {width} features needs"
    if context.num_samples < least:
        raise ValueError(
            f"{wanted} {least:,} samples; config.evaluation.num_samples is {context.num_samples}: "
            "raise it, or set resamples to 0"
        )
    if takes_held_out and (there := len(context.data.held_out().source)) < least:
        raise ValueError(
            f"{wanted} {least:,} held-out examples; {context.data.name} "
            f"({context.data.held_out_split}) has {there}: set resamples to 0"
        )


def uncertainty(
    name: str,
    extrapolate: Callable[..., Extrapolation],
    distance: Callable[..., float],
    *features: Float[np.ndarray, "_ features"],
    resamples: int,
) -> dict[str, Any]:
    """Return what a Fréchet distance is at infinitely many samples, and its interval of 95 %.

    Return nothing if there are fewer than `PER_FEATURE` examples for each feature. The
    extrapolation takes as long as 15 distances.

    Args:
        name: of the distance. The figures are `NAME_extrapolated` and `NAME_interval`.
        extrapolate, distance: of all `features`.
        resamples: of the bootstrap; 0 leaves the interval out.
    """
    if min(map(len, features)) < PER_FEATURE * features[0].shape[1]:
        return {}
    report: dict[str, Any] = {f"{name}_extrapolated": extrapolate(*features).distance}
    if resamples:
        interval = metrics.bootstrap_interval(distance, *features, resamples=resamples)
        report[f"{name}_interval"] = list(interval)
    return report


def describe_uncertainty(figures: Mapping[str, Any], resamples: int) -> str | None:
    """Return in words how the figures of `uncertainty` were made; None if there are none."""
    words = [EXTRAPOLATION] if any(name.endswith("_extrapolated") for name in figures) else []
    if any(name.endswith("_interval") for name in figures):
        words.append(f"intervals of 95 %: basic bootstrap, {resamples} resamples")
    return "; ".join(words) or None
