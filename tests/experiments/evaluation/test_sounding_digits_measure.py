"""The evaluator of synchrony, with samples that are real clips or wrong in one known way."""

import dataclasses

import numpy as np
import pytest

from experiments.evaluation import synchrony
from experiments.evaluation.context import Context
from experiments.evaluation.synchrony import SoundingDigits, detect_bounces, measure
from experiments.inputs.datasets import Data
from experiments.inputs.sound_and_video import SoundingClips, of_features
from genjax.data.sets import sounding_digits
from genjax.data.sets.sounding_digits import bounces, sound

SPLIT = "test[:8]"
DATA = Data("sounding_digits", "train[:2]", SPLIT, None, (17, 32, 32, 1), feature="sound_and_video")
FIELDS = dict(length=2, features=1, pooled_features=1, first_caption=1.0)
CONTEXT = Context(DATA, None, SoundingClips(encoder="none", data=DATA, **FIELDS), num_samples=8)


@pytest.fixture(scope="module")
def clips():
    return of_features(DATA.held_out().source[:])


class StandIn:
    """A model that knows the clips, and keeps or changes what is not given."""

    how = {"sampler": "none"}

    def __init__(self, clips, change):
        self.clips, self.change = clips, change

    def sample(self, labels, prompts, given):
        assert prompts == tuple(texts[0] for texts in DATA.held_out().captions)
        return self.clips if "sound" in given else self.clips | {"sound": self.change(self.clips)}


def test_bounces_are_seen_where_they_are(clips):
    """Against the data's own equations: within half a frame, and of the same digit."""
    missed = total = 0
    for video, exact in zip(clips["video"], bounces(SPLIT), strict=True):
        found = detect_bounces(video)
        for bounce in exact:
            near = [each for each in found if abs(each.time - bounce.time) < 0.5]
            total += 1
            missed += not any(each.digit == bounce.digit for each in near)
    assert total > 20 and missed == 0


@pytest.mark.parametrize("start", [(3.0, 5.0), (0.0, 16.0)])
def test_a_digit_that_rests_meets_no_wall(clips, monkeypatch, start):
    """Nor does a digit that rests at a wall, or goes along it."""
    (found,) = [each for each in synchrony._tracks(clips["video"][0])][:1]
    still = dataclasses.replace(found.movement, start=start, velocity=(0.0, 0.0))
    resting = (dataclasses.replace(found, movement=still),)
    monkeypatch.setattr(synchrony, "_tracks", lambda video: resting)
    assert detect_bounces(clips["video"][0]) == ()


def test_real_clips_and_delayed_ones(clips):
    """The delayed sounds are half a frame later, which changes the lag and little else."""
    late = lambda clips: np.roll(clips["sound"], 500, axis=1)
    report = SoundingDigits(CONTEXT)(StandIn(clips, late))
    for suffix in ("_real", "_video_given_sound"):
        assert report[f"hit_rate{suffix}"] >= 0.9 and report[f"false_rate{suffix}"] <= 0.1
        assert report[f"pitch_accuracy{suffix}"] >= 0.9
        assert abs(report[f"mean_lag{suffix}"]) < 0.01
        assert report[f"hit_rate{suffix}_unpaired"] < 0.6
        assert report[f"false_rate{suffix}_unpaired"] > 0.4
        assert report[f"digits_accuracy{suffix}"] == 1
    for suffix in ("", "_sound_given_video"):
        lag = report[f"mean_lag{suffix}"] - report["mean_lag_real"]
        np.testing.assert_allclose(lag, 0.0625, atol=0.005)
    assert report["num_samples"] == 8 and report["sampler"] == "none"


def test_wrong_pitches_and_silence_are_found_out(clips):
    seen = [detect_bounces(video) for video in clips["video"]]
    next_digit = lambda each: dataclasses.replace(each, digit=(each.digit + 1) % 10)
    wrong = np.stack([sound(tuple(map(next_digit, each))) for each in bounces(SPLIT)])
    found = measure(seen, wrong)
    assert found["pitch_accuracy"] < 0.1 and found["hit_rate"] >= 0.9
    assert measure(seen, np.zeros_like(wrong)) == {"hit_rate": 0.0}
    every_frame = [sounding_digits.Bounce(0, float(frame), "top") for frame in range(16)]
    noisy = measure(seen, np.stack([sound(every_frame)] * len(seen)))
    assert noisy["hit_rate"] > 0.9 and noisy["false_rate"] > 0.5
