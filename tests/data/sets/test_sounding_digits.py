"""Digits that sound when they bounce, compared with a walk of each digit, sample by sample."""

import numpy as np
import pytest

from genjax.data import Batches, InMemory, load_dataset
from genjax.data.dataset import OnDisk
from genjax.data.sets import sounding_digits as module
from genjax.data.sets.moving_digits import DIGIT_SIDE, SIDE, Movement, movements
from genjax.data.sets.sounding_digits import bounces, bounces_of, load_sounding_digits

SPLIT, COUNT = "train[:60]", 60
ROOM = float(SIDE - DIGIT_SIDE)
RATE, FRAME, FRAMES = 8000, 1000, 17
TONE = 2000  # samples


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("sounding_digits", SPLIT)


@pytest.fixture(scope="module")
def sounds(dataset):
    return dataset.source.arrays["audio"][..., 0] / 2**15


def walked(movement):
    """Return (sample, wall) of each bounce, by steps of a sample that turn beyond a wall."""
    found = []
    walls = ("top", "bottom"), ("left", "right")
    for names, place, speed in zip(walls, movement.start, movement.velocity, strict=True):
        step = speed / FRAME
        for sample in range(1, (FRAMES - 1) * FRAME + 1):
            place += step
            if not 0 <= place <= ROOM:
                found.append((sample, names[int(place > ROOM)]))
                place, step = min(max(place, -place), 2 * ROOM - place), -step
    return sorted(found)


def test_bounces_are_where_a_walk_of_small_steps_turns():
    for moving, given in zip(movements(SPLIT), bounces(SPLIT), strict=True):
        expected = sorted((s, w, m.digit) for m in moving for s, w in walked(m))
        assert [(b.wall, b.digit) for b in given] == [each[1:] for each in expected]
        for bounce, (sample, *_) in zip(given, expected, strict=True):
            assert sample - 1 <= bounce.time * FRAME <= sample  # the turn is within this step
            assert bounce.sample in (sample - 1, sample)
            assert bounce.frame == -(-sample // FRAME)


def test_a_digit_that_rests_at_a_wall_bounces_off_the_others_alone():
    still = Movement(digit=3, start=(0.0, ROOM), velocity=(0.0, 0.0))
    along = Movement(digit=3, start=(0.0, ROOM - 4.0), velocity=(0.0, 2.0))
    assert bounces_of([still]) == ()
    first = bounces_of([along])[0]
    assert (first.wall, first.time, first.digit) == ("right", 2.0, 3)
    assert {bounce.wall for bounce in bounces_of([along])} <= {"left", "right"}


def test_places_turn_at_the_frame_of_each_bounce():
    """Before a bounce a digit's places go towards the wall, and after it away."""
    turns = 0
    for moving, given in zip(movements("train[:300]"), bounces("train[:300]"), strict=True):
        if len(moving) == 2:
            continue  # whose bounces these are is known for single digits
        places = moving[0].places()
        for bounce in given:
            path = places[:, 0 if bounce.wall in ("top", "bottom") else 1]
            distance = path if bounce.wall in ("top", "left") else ROOM - path
            before, after = distance[: bounce.frame], distance[bounce.frame :]
            assert before[-1] <= before[-2:].max() and after[0] <= after[:2].max()
            assert min(before[-1], after[0]) <= 1.5 + 0.5  # half of the longest step, rounded
            turns += 1
    assert turns > 100


def test_sounds_start_exactly_at_bounces_and_silence_is_elsewhere(sounds):
    heard = 0
    for sound, given in zip(sounds, bounces(SPLIT), strict=True):
        silent, starts = np.ones(len(sound), bool), [bounce.sample for bounce in given]
        for start in starts:
            silent[start : start + TONE] = False
        assert not np.any(sound[silent])
        for start in starts:
            if silent[start - 1]:  # no other tone hides the start
                assert sound[start] > 0.05
                heard += 1
    assert heard > 50 and np.abs(sounds).max() < 1


def test_pitches_tell_the_digits(sounds):
    """The highest peak of the spectrum of a tone that sounds alone is at its digit's pitch."""
    # C4 to C7 in equal temperament, from its table of frequencies
    table = [261.63, 329.63, 415.30, 523.25, 659.26, 830.61, 1046.50, 1318.51, 1661.22, 2093.00]
    digits = set()
    for sound, given in zip(sounds, bounces(SPLIT), strict=True):
        starts = np.array([bounce.sample for bounce in given])
        for bounce in given:
            near = np.abs(starts - bounce.sample) < TONE
            if near.sum() > 1 or bounce.sample + TONE > len(sound):
                continue
            spectrum = np.abs(np.fft.rfft(sound[bounce.sample :][:TONE], 8 * TONE))
            pitch = np.fft.rfftfreq(8 * TONE, 1 / RATE)[spectrum.argmax()]
            assert abs(pitch - table[bounce.digit]) < 2  # Hz; the nearest pitches are 68 apart
            digits.add(bounce.digit)
    assert len(digits) >= 8


def test_four_tones_at_once_do_not_clip():
    at_once = [module.Bounce(digit, 1.0, "top") for digit in (0, 3, 6, 9)]
    assert np.abs(module.sound(at_once).astype(int)).max() < 2**15 - 1


def test_clips_are_those_of_moving_digits_and_depend_on_split_and_index_only(dataset):
    silent = load_dataset("moving_digits", SPLIT)
    np.testing.assert_array_equal(dataset.source.arrays["video"], silent.source.arrays["video"])
    assert dataset.captions == silent.captions and dataset.image_shape == (17, 32, 32, 1)
    assert dataset.source.arrays["audio"].shape == (COUNT, FRAMES * FRAME, 1)
    later = load_sounding_digits("train[50:60]", preload_bytes=0)
    assert isinstance(later.source, OnDisk) and isinstance(dataset.source, InMemory)
    for name, array in later.source[:].items():
        np.testing.assert_array_equal(array, dataset.source.arrays[name][50:])
        assert array.dtype == dataset.source.arrays[name].dtype
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_sounding_digits("valid")


def test_one_digit_alone_sounds_by_its_own_bounces():
    dataset = load_dataset("sounding_digits", SPLIT, num_digits=1)
    silent = load_dataset("moving_digits", SPLIT, num_digits=1)
    np.testing.assert_array_equal(dataset.source.arrays["video"], silent.source.arrays["video"])
    for (moving,), given, sound in zip(
        movements(SPLIT, num_digits=1),
        bounces(SPLIT, num_digits=1),
        dataset.source.arrays["audio"],
        strict=True,
    ):
        assert given == bounces_of([moving])
        np.testing.assert_array_equal(module.sound(given), sound)


def test_two_processes_read_disjoint_parts_of_the_same_batch():
    dataset = load_sounding_digits("train[:8]", preload_bytes=0)
    shape = FRAMES, SIDE, SIDE, 1
    whole = Batches(dataset, 8, seed=0, image_shape=shape)[2]
    parts = [Batches(dataset, 8, seed=0, rows=np.arange(4) + start)[2] for start in (0, 4)]
    assert set(whole["index"]) == set(range(8))  # of one epoch
    assert not set(parts[0]["index"]) & set(parts[1]["index"])
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
