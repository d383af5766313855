"""Synchrony: how well events that are seen match events that are heard.

Times are in seconds. Events of a clip are an array of times, and events of many clips a sequence of
such arrays. `detect_onsets` finds events in a waveform. The caller gives the events that are seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts when they are used: `scipy.signal` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from genjax.audio import hann_window, stft
from genjax.metrics.border import check_finite

Times = Float[np.ndarray, "_"]
STEP = 0.004  # seconds between the frames of `onset_strength`
LAG, FRAME = 4, 8  # steps between the two frames that are compared, and of a frame: 16 and 32 ms
THRESHOLD = 0.03  # strength of an onset: that of a tone at −30 dB of full scale

# A steady tone of amplitude 1 would have this strength. The Hann window spreads it over three bins
# of 1/2, 1 and 1/2. The second factor is the window's share between the centres of both frames.
_UNIT = np.sqrt(1.5) * (0.5 + 1 / np.pi)
PITCH_SECONDS = 0.04  # of sound after an onset, whose pitch is measured


class Synchrony(NamedTuple):
    """How events seen and heard match.

    Attributes:
        hit_rate: share of seen events that have a sound.
        false_rate: share of sounds without a seen event.
        mean_lag: of matched sounds behind their events, in seconds; negative where sounds lead.
        lag_spread: standard deviation of the lag, in seconds.

    A share or a mean of nothing is NaN.
    """

    hit_rate: float
    false_rate: float
    mean_lag: float
    lag_spread: float


def synchrony(
    video_events: Sequence[Times], audio_events: Sequence[Times], tolerance: int | float
) -> Synchrony:
    """Measure how events seen in clips match the events heard in them.

    Every event has at most one sound, and every sound at most one event (`match_events`). Rates and
    lags are those of the events of all clips together.

    Args:
        video_events, audio_events: times of each clip's events, in seconds.
        tolerance: the largest lag of a match, in seconds.

    Raises:
        ValueError: `video_events` and `audio_events` are of different numbers of clips, or a clip's
            are not finite `[events]`.
    """
    if len(video_events) != len(audio_events):
        raise ValueError(
            f"there are video events of {len(video_events)} clips and audio events of "
            f"{len(audio_events)}: give each clip both"
        )
    pairs = [
        match_events(*both, tolerance) for both in zip(video_events, audio_events, strict=True)
    ]
    clips = zip(video_events, audio_events, pairs, strict=True)
    lags = [heard[found[:, 1]] - seen[found[:, 0]] for seen, heard, found in clips]
    lags = np.concatenate(lags or [np.zeros(0)])
    num_seen, num_heard = (sum(map(len, events)) for events in (video_events, audio_events))
    return Synchrony(
        hit_rate=len(lags) / num_seen if num_seen else np.nan,
        false_rate=1 - len(lags) / num_heard if num_heard else np.nan,
        mean_lag=float(lags.mean()) if len(lags) else np.nan,
        lag_spread=float(lags.std()) if len(lags) else np.nan,
    )


def chance_synchrony(
    video_events: Sequence[Times], audio_events: Sequence[Times], tolerance: int | float
) -> Synchrony:
    """Measure the synchrony of each clip with the sound of the next one: the level of chance.

    Raises:
        ValueError: as of `synchrony`, or there are fewer than two clips.
    """
    if len(video_events) < 2:
        raise ValueError(
            "chance is measured with the sound of another clip, and there are "
            f"{len(video_events)} clips: give two or more"
        )
    return synchrony(video_events, [*audio_events[1:], *audio_events[:1]], tolerance)


def match_events(
    video_events: Times, audio_events: Times, tolerance: int | float
) -> Int[np.ndarray, "matches 2"]:
    """Return the pairs of one event seen and one heard that are at most `tolerance` seconds apart.

    As many events as possible are paired, and with as little total lag as possible.

    Raises:
        ValueError: events are not finite `[events]`.
    """
    seen, heard = _as_times(video_events, "video_events"), _as_times(audio_events, "audio_events")
    gaps = np.abs(heard[None] - seen[:, None])
    allowed = gaps <= tolerance
    # One more match outweighs any lag.
    costs = np.where(allowed, gaps, (1 + tolerance) * (1 + min(gaps.shape)))
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    kept = allowed[rows, columns]
    return np.stack([rows[kept], columns[kept]], axis=1)


def detect_onsets(
    waveform: Float[ArrayLike, "samples channels"], sample_rate: int, threshold: float = THRESHOLD
) -> Times:
    """Return the times at which sounds begin, in seconds from the first sample.

    They are the peaks of `onset_strength` that reach `threshold`, and rise by as much from their
    surroundings. Onsets less than 16 ms apart count as one.

    Raises:
        ValueError: the waveform is not of finite floats, `[samples channels]`.
    """
    strength, times = onset_strength(waveform, sample_rate)
    at_least = dict(height=threshold, distance=LAG, prominence=threshold)
    peaks, _ = scipy.signal.find_peaks(strength, **at_least)
    return times[peaks]


def onset_strength(
    waveform: Float[ArrayLike, "samples channels"], sample_rate: int
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return the spectral flux of a waveform every 4 ms, and the times of the steps.

    Magnitudes of frames of 32 ms are compared with those 16 ms before. The flux is √(Σ rises² − Σ
    falls²) over bins. The flux is 0 where bins fall more than they rise or the energy falls, as at
    the end of a tone. It is scaled so that a steady tone has a peak of about its amplitude, within
    4 ms of its beginning. The peak of a tone that decays by 1/e in 50 ms is 4 ms early. Channels
    become their mean, and there is silence before the first sample.

    Raises:
        ValueError: as of `detect_onsets`.

    Source: Bello et al. 2005, "A tutorial on onset detection in music signals", section III-A,
    where the flux is the sum of the rises.
    """
    hop = round(STEP * sample_rate)
    size = FRAME * hop
    # Silence before the first sample, so that the flux of a tone there rises to its peak.
    mono = np.pad(_as_mono(waveform), (size, 0))
    padded = stft(mono[None, :, None], size, hop, pad_mode="constant")
    magnitudes = np.abs(np.asarray(padded[0, :, :, 0], np.complex128)) / (size / 4)
    changes = magnitudes[LAG:] - magnitudes[:-LAG]
    energy = (magnitudes**2).sum(1)
    flux = (np.sign(changes) * changes**2).sum(1)
    # The end of a tone splashes over all bins before its own bins fall; the energy falls at once.
    power = np.minimum(flux, energy[LAG:] - energy[:-LAG])
    times = (np.arange(len(power)) + LAG / 2 - FRAME) * hop / sample_rate
    return np.sqrt(np.maximum(power, 0)) / _UNIT, times


def onset_pitch(
    waveform: Float[ArrayLike, "samples channels"],
    time: int | float,
    sample_rate: int,
    *,
    seconds: int | float = PITCH_SECONDS,
    low: int | float = 100,
    high: int | float = 3000,
) -> float:
    """Return the loudest frequency of the sound after an onset, in Hz; NaN for silence.

    The peak between bins is that of a parabola through three logarithms of magnitudes.

    Args:
        time: of the onset, in seconds from the first sample.
        seconds: of sound to measure. A longer time is more exact for a single tone, and less exact
            if another tone follows.
        low, high: the range of pitches, in Hz.

    Raises:
        ValueError: as of `detect_onsets`.
    """
    size = round(seconds * sample_rate)
    start = max(round(time * sample_rate), 0)
    part = _as_mono(waveform)[start : start + size]
    padded = 8 * size
    magnitudes = np.abs(
        np.fft.rfft(np.pad(part, (0, size - len(part))) * hann_window(size), padded)
    )
    frequencies = np.arange(len(magnitudes)) * sample_rate / padded
    inside = (low <= frequencies) & (frequencies <= high)
    inside[[0, -1]] = False  # a parabola needs a bin on either side
    peak = int(np.argmax(np.where(inside, magnitudes, 0)))
    if peak == 0:
        return math.nan
    left, middle, right = np.log(np.maximum(magnitudes[peak - 1 : peak + 2], 1e-12))
    bend = left - 2 * middle + right
    shift = (left - right) / (2 * bend) if bend < 0 else 0.0
    return float((peak + np.clip(shift, -0.5, 0.5)) * sample_rate / padded)


def _as_times(events: ArrayLike, name: str) -> Times:
    """Return a clip's events in float64; raise ValueError unless they are finite `[events]`."""
    times = np.asarray(events, np.float64)
    if times.ndim != 1:
        raise ValueError(
            f"{name} of a clip have shape {times.shape}; expected [events], times in seconds"
        )
    check_finite(times, name)
    return times


def _as_mono(waveform: ArrayLike) -> Float[np.ndarray, " samples"]:
    """Return the mean of the channels; raise ValueError unless it is of finite floats."""
    if np.ndim(waveform) != 2:
        raise ValueError(
            f"the waveform has shape {np.shape(waveform)}; expected [samples channels]: give one "
            "clip, and a single channel as waveform[:, None]"
        )
    waveform = np.asarray(waveform)
    if not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise ValueError(
            f"the waveform has integers ({waveform.dtype}); expected floats in [−1, 1]: convert "
            "int16 by genjax.data.sound_to_float"
        )
    mono = np.mean(waveform, axis=1)
    check_finite(mono, "the waveform")
    return mono
