"""The tracker of moving digits, against the exact movements of clips that it has not seen."""

import numpy as np
import pytest

from experiments.evaluation.tracking import Track, follows, track
from genjax.data import load_dataset
from genjax.data.sets.moving_digits import Movement, movements, render, write_caption

SPLIT = "test[:8]"


@pytest.fixture(scope="module")
def clips():
    return load_dataset("moving_digits", SPLIT)


@pytest.fixture(scope="module")
def tracks(clips):
    return [track(video) for video in clips.source.arrays["video"]]


def test_digits_places_and_velocities_are_the_true_ones(clips, tracks):
    """Of held-out digits. One with blank margins may be found one or two pixels beside its place,
    which changes the velocity that fits its bounces, too."""
    assert {len(found) for found in tracks} == {1, 2}
    for found, true, (caption,) in zip(tracks, movements(SPLIT), clips.captions, strict=True):
        by_digit = lambda movement: (movement.digit, movement.start)
        for ours, exact in zip(
            sorted((each.movement for each in found), key=by_digit),
            sorted(true, key=by_digit),
            strict=True,
        ):
            assert ours.digit == exact.digit
            assert np.abs(ours.places() - exact.places()).max() <= 2
            assert abs(ours.speed - exact.speed) < 0.2
        assert follows(found, caption) == {"digits": True, "directions": True, "both": True}
        assert all(each.is_whole for each in found)


def test_larger_frames_are_tracked():
    clips, truth = load_dataset("moving_digits/64", "test[:3]"), movements("test[:3]", 64)
    assert {len(moving) for moving in truth} == {1, 2}
    for video, moving, (caption,) in zip(
        clips.source.arrays["video"], truth, clips.captions, strict=True
    ):
        found = track(video)
        assert follows(found, caption)["both"]
        by_digit = lambda movement: movement.digit
        for ours, exact in zip(
            sorted((each.movement for each in found), key=by_digit),
            sorted(moving, key=by_digit),
            strict=True,
        ):
            assert np.abs(ours.places() - exact.places()).max() <= 2


def test_a_digit_that_vanishes_is_not_whole(clips, tracks):
    index = next(i for i, found in enumerate(tracks) if len(found) == 1)
    video = clips.source.arrays["video"][index].copy()
    video[6:8] //= 3
    (found,) = track(video)
    assert not found.is_whole and np.all(found.presence[6:8] < 0.5)
    assert found.movement.digit == tracks[index][0].movement.digit


def test_noise_changes_nothing_that_matters(clips, tracks):
    """Samples are not exact: blur by half and noise of a deviation of 15 grey levels."""
    for index in range(2):
        video = clips.source.arrays["video"][index].astype(float)
        blurred = (video + np.roll(video, 1, 1) + np.roll(video, 1, 2) + 3 * video) / 6
        noise = np.random.default_rng(0).normal(0, 15, video.shape)
        noisy = np.clip(blurred + noise, 0, 255).astype(np.uint8)
        ((caption,),) = clips.captions[index : index + 1]
        assert follows(track(noisy), caption)["both"]


def found(digit, velocity, start=(8.0, 8.0)):
    return Track(Movement(digit, start, velocity), np.ones((16, 16)), np.ones(17))


def test_following_a_caption():
    up, left = found(3, (-1.0, 0.0)), found(7, (0.0, -2.5))
    caption = write_caption([(7, "fast", "left"), (3, "slowly", "up")])
    assert follows([up, left], caption) == dict(digits=True, directions=True, both=True)
    crossed = write_caption([(7, "fast", "up"), (3, "slowly", "left")])
    assert follows([up, left], crossed) == dict(digits=True, directions=True, both=False)
    assert not any(follows([up], caption).values())  # a digit is missing
    other = write_caption([(7, "fast", "left"), (2, "slowly", "up")])
    assert follows([up, left], other) == dict(digits=False, directions=True, both=False)
    later = write_caption([(7, "fast", "right"), (3, "slowly", "down")])
    assert not follows([up, left], later)["directions"]
    assert follows([up, left], later, reflected=True)["both"]
    assert not follows([up, left], crossed, reflected=True)["both"]


def test_directions_that_pixels_admit():
    toward = lambda degrees: tuple(float(f(np.radians(degrees))) * 2 for f in (np.sin, np.cos))
    assert found(1, toward(10.0)).directions == {"right"}
    for degrees in (21.0, 24.0):  # the border is at 22.5°
        assert found(1, toward(degrees)).directions == {"right", "down right"}
    at_a_wall = found(1, toward(45.0), start=(8.0, 0.3))
    assert at_a_wall.directions == {"down right", "down left"}
    at_the_far_wall = found(1, toward(45.0), start=(15.7, 8.0))
    assert at_the_far_wall.directions == {"down right", "up right"}
    for place in (0.7, 15.3):
        assert found(1, toward(45.0), start=(8.0, place)).directions == {"down right"}


def test_clips_are_rendered_again_from_what_is_found(clips, tracks):
    for video, found in zip(clips.source.arrays["video"][:4], tracks, strict=False):
        pictures = [np.rint(each.picture * 255).astype(np.uint8) for each in found]
        error = render([each.movement for each in found], pictures) / 255 - video / 255
        assert (error**2).sum() < 0.05 * ((video / 255) ** 2).sum()
