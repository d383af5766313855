import numpy as np
import pytest

from genjax.data import Batches, InMemory, load_dataset
from genjax.data.sets import moving_digits as module
from genjax.data.sets.moving_digits import DIGIT_SIDE, SIDE, SPEEDS


@pytest.fixture(scope="module")
def clips():
    return load_dataset("moving_digits", "train[:200]").source.arrays["video"]


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
    monkeypatch.setattr(module, "_digits", lambda: {"train": squares, "test": squares})
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
    assert set(batch) == {"video"} and batch["video"].shape == (4, 17, 32, 32, 1)
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
