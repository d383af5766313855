"""Measures of whether digits sound when they bounce: bounces seen against tones heard."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int16, UInt8

from experiments.evaluation.context import Context, Model
from experiments.evaluation.tracking import Track, check_clips, follows, track
from experiments.inputs.sound_and_video import Clips, SoundingClips, of_features
from genjax.data.sets.moving_digits import NUM_FRAMES
from genjax.data.sets.sounding_digits import (
    FRAMES_PER_SECOND,
    PITCHES,
    SAMPLE_RATE,
    Bounce,
    bounces_of,
)
from genjax.metrics.synchrony import detect_onsets, match_events, onset_pitch, synchrony

TOLERANCE = 1 / FRAMES_PER_SECOND  # seconds: one frame
EDGE = 0.5  # frames after the first and before the last one, in which no bounce can be seen
MODES = {"": (), "_sound_given_video": ("video",), "_video_given_sound": ("sound",)}


@functools.lru_cache(maxsize=2000)
def _tracks_of_bytes(video: bytes, shape: tuple[int, ...]) -> tuple[Track, ...]:
    return tuple(track(np.frombuffer(video, np.uint8).reshape(shape)))


def _tracks(video: UInt8[np.ndarray, "17 side side 1"]) -> tuple[Track, ...]:
    """Return the digits of a clip; a video that samples keep is tracked once."""
    return _tracks_of_bytes(video.tobytes(), video.shape)


def detect_bounces(video: UInt8[np.ndarray, "17 side side 1"]) -> tuple[Bounce, ...]:
    """Return the bounces of the digits that the tracker finds in a clip."""
    return bounces_of([each.movement for each in _tracks(video)])


def recognize_digit(sound: Int16[np.ndarray, "samples channels"], time: float) -> int:
    """Return the digit whose pitch is nearest to that of the sound after an onset."""
    pitch = onset_pitch(sound / 2**15, time, SAMPLE_RATE)
    return int(np.abs(np.log(PITCHES) - np.log(pitch)).argmin())


def measure(
    seen: Sequence[Sequence[Bounce]], sounds: Int16[np.ndarray, "clips samples channels"]
) -> dict[str, float]:
    """Return how bounces seen in clips match the onsets of these sounds; see `SoundingDigits`."""
    heard = [detect_onsets(sound / 2**15, SAMPLE_RATE) for sound in sounds]
    times = [np.array([each.time for each in bounces]) / FRAMES_PER_SECOND for bounces in seen]
    edges = EDGE / FRAMES_PER_SECOND, (NUM_FRAMES - 1 - EDGE) / FRAMES_PER_SECOND
    sure = [each[(edges[0] < each) & (each < edges[1])] for each in times]
    right = [
        recognize_digit(sound, onsets[j]) == bounces[i].digit
        for bounces, each, onsets, sound in zip(seen, times, heard, sounds, strict=True)
        for i, j in match_events(each, onsets, TOLERANCE)
    ]
    of_sure, of_all = (synchrony(each, heard, TOLERANCE) for each in (sure, times))
    found = of_sure._asdict() | {"false_rate": of_all.false_rate}
    found["pitch_accuracy"] = float(np.mean(right)) if right else np.nan
    return {name: value for name, value in found.items() if not np.isnan(value)}


@dataclass(frozen=True)
class SoundingDigits:
    """Measure whether samples of `sounding_digits` sound when, and as, their digits bounce.

    The tracker of moving digits sees the bounces, and onsets are heard in the sound alone. At most
    one frame lies between a bounce and its sound. `hit_rate` is the share of bounces that have a
    sound, `false_rate` the share of sounds without a bounce. `mean_lag` and `lag_spread` are those
    of sounds behind their bounces, in seconds. `pitch_accuracy` is the share of matched sounds
    whose pitch names the digit seen. `digits_accuracy` is the share of clips that show the
    caption's digits. Figures of nothing, as of no sound, are left out.

    Samples are of both modalities, of sound given a held-out clip's video, and of video given its
    sound (`…_sound_given_video`, `…_video_given_sound`). `…_real` is the same of held-out clips,
    `…_unpaired` that of each clip with the next clip's sound: the level of chance.

    Bounces within half a frame of the first and the last frame cannot be seen, and are no part of
    `hit_rate`. Two bounces within 16 ms are heard as one. 48 held-out clips have a hit rate of
    97.7 % and a false rate of 0.6 %.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2  # one clip would be unpaired with itself

    def __post_init__(self):
        if not isinstance(self.context.condition, SoundingClips):
            raise ValueError(
                "config.evaluation.measures has SoundingDigits, which needs "
                "config.condition.name=SoundingClips"
            )
        check_clips(self.context.data.image_shape, "SoundingDigits")

    def __call__(self, model: Model) -> dict[str, Any]:
        held_out = self.context.data.held_out()
        real = of_features(held_out.source[: self.context.num_samples])
        captions = tuple(texts[0] for texts in held_out.captions[: len(real["video"])])
        report = _described(real, captions, "_real")
        for suffix, given in MODES.items():
            clips = model.sample(np.arange(len(captions)), captions, given=given)
            report |= _described(clips, captions, suffix)
        return report | {"num_samples": len(captions), **model.how}


def _described(clips: Clips, captions: Sequence[str], suffix: str) -> dict[str, float]:
    """Return the measures of clips, paired and unpaired."""
    seen = [detect_bounces(video) for video in clips["video"]]
    paired = measure(seen, clips["sound"])
    unpaired = measure(seen, np.roll(clips["sound"], -1, axis=0))
    right = [
        follows(_tracks(video), text)["digits"]
        for video, text in zip(clips["video"], captions, strict=True)
    ]
    return {
        **{f"{name}{suffix}": value for name, value in paired.items()},
        **{f"{name}{suffix}_unpaired": value for name, value in unpaired.items()},
        f"digits_accuracy{suffix}": float(np.mean(right)),
    }
