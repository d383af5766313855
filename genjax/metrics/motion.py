"""Motion in videos: change between frames, constancy along the flow, distributions of speeds.

Videos are `[batch time height width channels]`, in any unit; measures are in the same unit.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.stats` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from genjax.metrics.border import check_finite

LEVEL = 0.05  # of the two-sample test
POWER = 0.9


def frame_differences(
    videos: Shaped[ArrayLike, "batch time height width channels"],
) -> Float[np.ndarray, "batch time-1"]:
    """Return the mean absolute difference of each frame and the next, in the videos' unit.

    Raises:
        ValueError: videos do not have five axes and two frames, or are not finite.
    """
    return np.abs(np.diff(_as_videos(videos), axis=1)).mean((2, 3, 4))


def warping_error(
    videos: Shaped[ArrayLike, "batch time height width channels"],
    flow: Shaped[ArrayLike, "batch time-1 height width 2"],
    known: Bool[ArrayLike, "batch time-1 height width"],
) -> Float[np.ndarray, " batch"]:
    """Return the root mean square change of pixels along the flow, in the videos' unit.

    The error of a pixel p in frame t is x_{t+1}(p + flow_t(p)) − x_t(p), interpolated linearly
    between pixels. It is 0 if everything keeps its colour, and NaN for a video without known flow.

    All known pixels of a video count equally. Lai et al. average over frames first, and take no
    root.

    Args:
        flow: rows and columns in pixels, from each frame to the next.
        known: where the flow is valid. It is not where something is hidden or appears, and where
            it leaves the frame, beyond which pixels count as 0.

    Raises:
        ValueError: as of `frame_differences`; flow or `known` have another shape; or the flow is
            not finite where it is known.

    Source: Lai et al. 2018, "Learning blind video temporal consistency", equation 6.
    """
    videos, flow, known = _as_videos(videos), np.asarray(flow, np.float64), np.asarray(known, bool)
    batch, frames, *sides, _ = videos.shape
    shape = batch, frames - 1, *sides
    if (flow.shape, known.shape) != ((*shape, 2), shape):
        raise ValueError(
            f"flow has shape {flow.shape} and known {known.shape}; expected {(*shape, 2)} and "
            f"{shape}: give a flow for each frame but the last"
        )
    check_finite(flow[known], "flow where it is known")
    rows, columns = np.indices(sides)
    # The other mode with zeros, "constant", interpolates nothing beyond the outermost pixels.
    warped = functools.partial(scipy.ndimage.map_coordinates, order=1, mode="grid-constant")
    errors = []
    for video, steps, counted in zip(videos, flow, known, strict=True):
        squares = [
            (warped(after[..., channel], places) - before[..., channel]) ** 2
            for before, after, step in zip(video[:-1], video[1:], steps, strict=True)
            for places in [(rows + step[..., 0], columns + step[..., 1])]
            for channel in range(video.shape[-1])
        ]
        squares = np.reshape(squares, (*steps.shape[:1], -1, *counted.shape[1:])).mean(1)
        errors.append(np.sqrt(squares[counted].mean()) if counted.any() else np.nan)
    return np.array(errors)


class TwoSampleTest(NamedTuple):
    """The result of a two-sample Kolmogorov–Smirnov test.

    Attributes:
        distance: the largest difference of the two distribution functions.
        p_value: the probability of at least this distance if both distributions are equal.
        detectable: a difference of the distribution functions that the test finds with probability
            `POWER` or more, at level `LEVEL`.
    """

    distance: float
    p_value: float
    detectable: float


def kolmogorov_smirnov(
    values_a: Float[ArrayLike, " examples_a"], values_b: Float[ArrayLike, " examples_b"]
) -> TwoSampleTest:
    """Test whether two samples have the same distribution, and state the test's power.

    Where two distribution functions differ by d, their empirical difference is about normal, with
    a variance of at most (1/n + 1/m)/4. The test rejects above k·√(1/n + 1/m), where k is the
    quantile of Kolmogorov's distribution at `LEVEL`. So it rejects with probability `POWER` or more
    if d ≥ (k + z/2)·√(1/n + 1/m), where z is the quantile of the normal distribution at `POWER`.

    Raises:
        ValueError: a sample has fewer than two values, or they are not finite.
    """
    samples = [np.asarray(values, np.float64).reshape(-1) for values in (values_a, values_b)]
    for name, sample in zip(("values_a", "values_b"), samples, strict=True):
        if len(sample) < 2:
            raise ValueError(f"{name} has {len(sample)} values; expected 2 or more: take more")
        check_finite(sample, name)
    result = scipy.stats.ks_2samp(*samples)
    scale = np.sqrt(sum(1 / len(sample) for sample in samples))
    detectable = (scipy.stats.kstwobign.isf(LEVEL) + scipy.stats.norm.ppf(POWER) / 2) * scale
    return TwoSampleTest(float(result.statistic), float(result.pvalue), min(float(detectable), 1.0))


def _as_videos(videos: ArrayLike) -> np.ndarray:
    videos = np.asarray(videos, np.float64)
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(
            f"videos have shape {videos.shape}; expected [batch time height width channels] with 2 "
            "or more frames"
        )
    check_finite(videos, "videos")
    return videos
