import hashlib
import itertools

import numpy as np
import pytest

from genjax.data import Batches, InMemory, load_dataset
from genjax.data.dataset import OnDisk
from genjax.data.sets import moving_digits as module
from genjax.data.sets.moving_digits import (
    DIGIT_SIDE,
    DIRECTIONS,
    PACES,
    SIDE,
    SPEEDS,
    digit_pictures,
    movements,
    parse_caption,
    render,
    write_caption,
)

# Of the first 200 clips of each split, before clips had captions.
BEFORE = {
    "train": "ae43307a7c55ff3dccbc16fd8405c9532c832c62015b868cd42054b379b10004",
    "test": "232a7fb6d90ea4beba77b1fa5f9921490358d7fdbe5ba80488c8e104992e4637",
}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("moving_digits", "train[:200]")


@pytest.fixture(scope="module")
def clips(dataset):
    return dataset.source.arrays["video"]


def box(frame):
    """Return top, left, bottom and right of the pixels that are not black."""
    rows, columns = np.nonzero(frame[..., 0])
    return np.array([rows.min(), columns.min(), rows.max(), columns.max()])


def cut(frame):
    top, left, bottom, right = box(frame)
    return frame[top : bottom + 1, left : right + 1]


def shows_one(video):
    """Return whether all frames show the same shape, possibly at different places."""
    return all(np.array_equal(cut(video[0]), cut(frame)) for frame in video)


def test_shapes_and_sizes(clips):
    assert clips.shape == (200, 17, 32, 32, 1) and clips.dtype == np.uint8
    assert len(load_dataset("moving_digits", "train[9999:]+test[-1000:-998]").source) == 3
    with pytest.raises(ValueError, match="10001 lies beyond"):
        load_dataset("moving_digits", "train[:10001]")


def test_extra_clips_are_others_of_the_same_digits():
    """A large split is drawn as it is read, and what follows `train` are the clips of `extra`."""
    both = load_dataset("moving_digits", "train[:20]+extra[:20]")
    drawn = load_dataset("moving_digits", "train[:20]+extra[:20]", preload_bytes=0)
    assert isinstance(both.source, InMemory) and isinstance(drawn.source, OnDisk)
    assert (drawn.image_shape, drawn.captions) == (both.image_shape, both.captions)
    videos = both.source.arrays["video"]
    np.testing.assert_array_equal(drawn.source[np.arange(40)]["video"], videos)
    np.testing.assert_array_equal(
        videos[20:], load_dataset("moving_digits", "extra[:20]").source.arrays["video"]
    )
    assert len({video.tobytes() for video in videos}) == 40
    digits, _ = digit_pictures("train")
    for moving, video in zip(movements("extra[:20]"), videos[20:], strict=True):
        np.testing.assert_array_equal(render(moving, [digits[m.example] for m in moving]), video)


def test_unknown_splits_and_sizes_are_refused():
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_dataset("moving_digits", "valid")


def test_a_clip_is_a_function_of_split_and_index(clips):
    again = load_dataset("moving_digits", "train[150:153]").source.arrays["video"]
    np.testing.assert_array_equal(again, clips[150:153])
    assert len({clip.tobytes() for clip in clips}) == 200
    test = load_dataset("moving_digits", "test[:3]").source.arrays["video"]
    assert not any(np.array_equal(a, b) for a, b in zip(test, clips, strict=False))
    # the splits do not share movements either
    test = load_dataset("moving_digits", "test[:60]").source.arrays["video"]
    assert list(map(shows_one, test)) != list(map(shows_one, clips[:60]))


def test_as_often_one_as_two(clips):
    # four standard errors; two digits always move relative to each other
    assert abs(sum(map(shows_one, clips)) - 100) < 4 * np.sqrt(200 / 4)


@pytest.fixture(scope="module")
def shapes(data_dir):
    """Return by split the digits' shapes without margins, and their places in 16×16 pixels."""
    found = {}
    for split in ("train", "test"):
        digits = (
            load_dataset("digits", split, data_dir).source.arrays["image"].repeat(2, 1).repeat(2, 2)
        )
        found[split] = {cut(digit).tobytes(): box(digit)[:2] for digit in digits}
    return found


@pytest.fixture(scope="module")
def classes(data_dir):
    """Return the class of each digit by its shape without margins."""
    arrays = load_dataset("digits", "train", data_dir).source.arrays
    digits = arrays["image"].repeat(2, 1).repeat(2, 2)
    return {cut(d).tobytes(): c for d, c in zip(digits, arrays["label"].tolist(), strict=True)}


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_digits_are_those_of_the_split(shapes, split, other):
    videos = load_dataset("moving_digits", f"{split}[:40]").source.arrays["video"]
    shown = {cut(video[0]).tobytes() for video in videos if shows_one(video)}
    assert len(shown) > 10
    assert shown <= shapes[split].keys() and not shown & shapes[other].keys()


def test_they_go_straight_and_bounce(clips, shapes):
    """Steps along each side are equal except for rounding, and turn only at a border."""
    room, turns, speeds = SIDE - DIGIT_SIDE, 0, []
    for video in filter(shows_one, clips):
        path = (
            np.array([box(frame)[:2] for frame in video]) - shapes["train"][cut(video[0]).tobytes()]
        )
        assert path.min() >= 0 and path.max() <= room
        lengths = []
        for places in path.T:
            steps = np.diff(places)
            assert np.abs(steps).max() <= SPEEDS[1]
            near = (
                (places[:-1] <= 3)
                | (places[:-1] >= room - 3)
                | (places[1:] <= 3)
                | (places[1:] >= room - 3)
            )
            free = steps[~near]
            turned = np.flatnonzero(np.sign(steps[1:]) * np.sign(steps[:-1]) < 0) + 1
            turns += len(turned)
            # A step is 3 at most.
            assert np.all((places[turned] <= 3) | (places[turned] >= room - 3))
            if len(free):
                assert np.ptp(np.abs(free)) <= 1
                lengths.append(np.abs(free).mean())
        if len(lengths) == 2:
            speeds.append(np.hypot(*lengths))
    assert turns > 50 and len(speeds) > 20
    # means over a few steps, each rounded by less than 1
    assert SPEEDS[0] - 0.5 < min(speeds) < 1.5 and 2.5 < max(speeds) < SPEEDS[1] + 0.5


def test_of_two_digits_the_brighter_pixel_is_seen(monkeypatch):
    """The brighter of two squares is whole in every frame, the other outside their overlap."""
    squares = np.stack([np.full((16, 16), value, np.uint8) for value in (200, 100)])
    labelled = squares, np.arange(2)
    monkeypatch.setattr(module, "_digits", lambda: {"train": labelled, "test": labelled})
    videos = load_dataset("moving_digits", "train[:60]").source.arrays["video"]
    assert set(np.unique(videos)) == {0, 100, 200}
    both = videos[np.isin(videos, 200).any((1, 2, 3, 4)) & np.isin(videos, 100).any((1, 2, 3, 4))]
    assert len(both) > 5
    assert np.all((both == 200).sum((2, 3, 4)) == 256)
    darker = (both == 100).sum((2, 3, 4))
    assert darker.min() < 128 and darker.max() > 200


def test_batches_know_the_shape_of_videos():
    dataset = load_dataset("moving_digits", "test[:8]")
    assert dataset.image_shape == (17, 32, 32, 1) and isinstance(dataset.source, InMemory)
    batch = Batches(dataset, 4, seed=0, image_shape=(17, 32, 32, 1))[3]
    assert set(batch) == {"video", "index"} and batch["video"].shape == (4, 17, 32, 32, 1)
    with pytest.raises(
        ValueError, match=r"shape \(17, 32, 32, 1\), the network takes \(32, 32, 1\)"
    ):
        Batches(dataset, 4, seed=0, image_shape=(32, 32, 1))
    first = lambda example, generator: {"video": example["video"][:5]}
    assert (
        Batches(dataset, 4, seed=0, transform=first, image_shape=(5, 32, 32, 1))[0]["video"].shape[
            1
        ]
        == 5
    )
    with pytest.raises(
        ValueError, match=r"shape \(5, 32, 32, 1\), the network takes \(17, 32, 32, 1\)"
    ):
        Batches(dataset, 4, seed=0, transform=first, image_shape=(17, 32, 32, 1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_do_not_change_a_byte_of_the_clips(split):
    videos = load_dataset("moving_digits", f"{split}[:200]").source.arrays["video"]
    assert hashlib.sha256(videos.tobytes()).hexdigest() == BEFORE[split]


def test_captions_are_what_single_digits_show(dataset, clips, classes, shapes):
    """Class by shape, direction and pace by the places before the first turn, all from pixels."""
    checked = 0
    for video, (caption,) in zip(clips, dataset.captions, strict=True):
        if not shows_one(video):
            assert caption.count("moves") == 2
            continue
        ((digit, pace, direction),) = parse_caption(caption)
        shape = cut(video[0]).tobytes()
        assert digit == classes[shape]
        path = np.array([box(frame)[:2] for frame in video]) - shapes["train"][shape]
        free = np.all((path > 3) & (path < SIDE - DIGIT_SIDE - 3), axis=1).argmin()
        if free < 3:
            continue
        velocity = (path[free - 1] - path[0]) / (free - 1)
        error = np.sqrt(2) / (free - 1)  # both places are rounded by at most half a pixel a side
        angle, slack = np.arctan2(*velocity), np.arcsin(min(1, error / np.hypot(*velocity)))
        near = {DIRECTIONS[round((angle + d) / (np.pi / 4)) % 8] for d in (-slack, 0, slack)}
        assert direction in near
        if abs(np.hypot(*velocity) - 2) > error:
            assert pace == PACES[int(np.hypot(*velocity) > 2)]
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_ground_truth_shows_the_clips(split):
    dataset = load_dataset("moving_digits", f"{split}[40:70]")
    pictures, labels = digit_pictures(split)
    truth = movements(f"{split}[40:70]")
    for video, (caption,), moving in zip(
        dataset.source.arrays["video"], dataset.captions, truth, strict=True
    ):
        np.testing.assert_array_equal(render(moving, [pictures[m.example] for m in moving]), video)
        assert [m.digit for m in moving] == [labels[m.example] for m in moving]
        assert parse_caption(caption) == [(m.digit, m.pace, m.direction) for m in moving]
        assert all(SPEEDS[0] <= m.speed <= SPEEDS[1] for m in moving)


def test_words_of_directions():
    along = lambda row, column: (
        module.Movement(0, (0.0, 0.0), (float(row), float(column))).direction
    )
    assert along(0, 1) == "right" and along(1, 0) == "down"  # rows are numbered from the top
    assert along(0, -1) == "left" and along(-1, 0) == "up"
    assert along(0, -1 - 1e-9) == along(-1e-9, -1) == "left"  # no seam at 180°
    assert along(-1, 1) == "up right" and along(1, -1) == "down left"
    assert along(0.41, 1) == "right" and along(0.42, 1) == "down right"  # tan 22.5° = 0.414


def test_every_caption_is_parsed_back():
    described = list(itertools.product(range(10), PACES, DIRECTIONS))
    for first, second in zip(described, reversed(described), strict=True):
        assert parse_caption(write_caption([first])) == [first]
        assert parse_caption(write_caption([first, second])) == [first, second]
    assert write_caption([(3, "slowly", "up left")]) == "a 3 moves slowly up left"
    for wrong in ("", "a 3 moves up", "a 12 moves slowly up", "a 3 moves slowly up and"):
        with pytest.raises(ValueError, match="expected for example"):
            parse_caption(wrong)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pixels_keep_their_colours_along_the_exact_flow(split):
    videos = load_dataset("moving_digits", f"{split}[:40]").source.arrays["video"]
    pictures, _ = digit_pictures(split)
    rows, columns = np.indices((SIDE, SIDE))
    for video, moving in zip(videos, movements(f"{split}[:40]"), strict=True):
        flow, known = module.optical_flow(moving, [pictures[m.example] for m in moving])
        for before, after, step, counted in zip(video[:-1], video[1:], flow, known, strict=True):
            there = after[rows + step[..., 0], columns + step[..., 1], 0]
            np.testing.assert_array_equal(there[counted], before[counted, 0])
        lit = video[:-1, ..., 0] > 0
        assert known.mean() > 0.7 and (known & lit).sum() > 0.5 * lit.sum()
        assert np.any(flow[known & lit] != 0) and np.all(flow[~lit] == 0)


def test_larger_frames_have_the_same_digits_with_more_room():
    """Digits reach all four borders, and two of them overlap seldom."""
    dataset, truth = load_dataset("moving_digits/64", "train[:200]"), movements("train[:200]", 64)
    assert dataset.image_shape == (17, 64, 64, 1)
    small = movements("train[:200]")
    kept = lambda moving: [(each.example, each.digit, each.velocity) for each in moving]
    assert list(map(kept, truth)) == list(map(kept, small))
    places = np.concatenate([each.places() for moving in truth for each in moving])
    assert places.min(0).tolist() == [0, 0] and places.max(0).tolist() == [48, 48]
    pairs = [np.abs(a.places() - b.places()) for a, b in (m for m in truth if len(m) == 2)]
    # (1 − (1 − 15.5/48)²)² of frames, if places are uniform and then rounded
    assert np.mean([(pair < DIGIT_SIDE).all(-1) for pair in pairs]) == pytest.approx(
        0.293, abs=0.08
    )
    pictures, _ = digit_pictures("train")
    for video, moving in zip(dataset.source.arrays["video"][:20], truth, strict=False):
        np.testing.assert_array_equal(render(moving, [pictures[m.example] for m in moving]), video)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_have_the_asked_number_of_digits(count):
    dataset = load_dataset("moving_digits/64", "train[:20]", num_digits=count)
    truth, (pictures, _) = movements("train[:20]", 64, count), digit_pictures("train")
    assert {len(moving) for moving in truth} == {count}
    for video, (caption,), moving in zip(
        dataset.source.arrays["video"], dataset.captions, truth, strict=True
    ):
        np.testing.assert_array_equal(render(moving, [pictures[m.example] for m in moving]), video)
        assert [digit for digit, *_ in parse_caption(caption)] == [m.digit for m in moving]
    assert len({video.tobytes() for video in dataset.source.arrays["video"]}) == 20


def test_clips_without_digits_are_refused():
    with pytest.raises(ValueError, match="num_digits must be at least 1, .* not 0"):
        load_dataset("moving_digits", "train[:2]", num_digits=0)


def test_frames_without_room_are_refused():
    with pytest.raises(ValueError, match="frames of 16 pixels a side: a digit has 16"):
        load_dataset("moving_digits/16", "test[:1]")
