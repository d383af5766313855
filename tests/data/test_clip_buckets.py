"""Clips of many lengths and sizes: the bucket that each belongs to, and what is cut for it."""

import dataclasses

import numpy as np
import pytest

from genjax.data import Batches, BucketedBatches, Dataset, InMemory
from genjax.data.clip_buckets import BucketedClips, cut_clip, cut_to, nearest_clip_buckets
from genjax.data.dataset import OnDisk

WIDE, SQUARE, SHORT, STILL = BUCKETS = (5, 4, 8), (5, 6, 6), (3, 6, 6), (1, 6, 6)
SIZES = [(5, 10, 20), (9, 12, 12), (4, 8, 16), (3, 6, 6), (1, 6, 6), (2, 6, 12)]
BELONGS = [WIDE, SQUARE, SHORT, SHORT, STILL, STILL]
REPEATS = 3


def clips():
    """Clips whose pixels are 10 times their number plus the number of their frame."""
    records = [
        {"video": np.full((*size, 1), 10 * i) + np.arange(size[0])[:, None, None, None], "label": i}
        for i, size in enumerate(SIZES * REPEATS)
    ]
    source = OnDisk(records, {"video": np.dtype(np.uint8), "label": np.dtype(np.int32)})
    return Dataset("clips", "train", source, (None, None, None, 1))


def test_a_clip_belongs_to_the_longest_bucket_that_it_fills():
    nearest = nearest_clip_buckets(np.array(SIZES), BUCKETS)
    assert [BUCKETS[place] for place in nearest] == BELONGS
    with pytest.raises(ValueError, match="2 clips have fewer than 3 frames"):
        nearest_clip_buckets(np.array(SIZES), BUCKETS[:3])


@pytest.mark.parametrize("random_crop", [False, True])
def test_batches_have_successive_frames_of_the_clips_of_one_bucket(random_crop):
    batches = BucketedClips(clips(), 3, 0, buckets=BUCKETS, random_crop=random_crop)
    starts, seen = set(), []
    for step in range(6):  # an epoch: 18 clips in batches of 3
        batch, bucket = batches[step], batches.bucket(step)
        assert batch["video"].shape == (3, *bucket, 1)
        for video, label, size in zip(batch["video"], batch["label"], batch["size"], strict=True):
            assert BELONGS[label % 6] == bucket and tuple(size) == SIZES[label % 6]
            values = video[:, 0, 0, 0].astype(int) - 10 * label
            np.testing.assert_array_equal(values, values[0] + np.arange(bucket[0]))
            assert np.all(video == video[:, :1, :1])
            starts.add((label % 6 == 1) * int(values[0]))
            seen.append(int(label))
    assert len(set(seen)) >= 12 and (len(starts) > 1) == random_crop
    np.testing.assert_array_equal(batches[4]["video"], batches[4]["video"])


def test_all_frames_of_a_clip_are_cropped_alike():
    picture = np.random.default_rng(0).integers(0, 256, (6, 20, 1), np.uint8)
    clip = np.broadcast_to(picture, (4, 6, 20, 1))
    corners = set()
    for seed in range(8):
        cut = cut_clip(clip, (2, 6, 6), (seed,))
        np.testing.assert_array_equal(cut[0], cut[1])
        corners.add(cut[0].tobytes())
    assert len(corners) > 3
    np.testing.assert_array_equal(cut_clip(clip, (2, 6, 6))[0], picture[:, 7:13])


def test_a_cut_starts_at_any_frame_that_leaves_enough():
    clip = np.zeros((5, 6, 6, 1), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
    starts = {int(cut_clip(clip, (3, 6, 6), (seed,))[0, 0, 0, 0]) for seed in range(30)}
    assert starts == {0, 1, 2}


def test_a_cut_does_not_follow_the_draws_of_the_transform():
    """Both draw one of five numbers. They are equal in a fifth of 60 clips, which is 3 deviations
    below 0.36."""
    draw = lambda example, generator: {**example, "drawn": generator.integers(5)}
    video = np.zeros((3, 9, 6, 6, 1), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    nine = Dataset("clips", "train", InMemory({"video": video}))
    batches = BucketedClips(nine, 3, 0, buckets=[SQUARE], random_crop=True, transform=draw)
    equal = [b["video"][:, 0, 0, 0, 0] == b["drawn"] for b in map(batches.__getitem__, range(20))]
    assert 0 < np.mean(equal) < 0.36


def test_clips_and_images_are_not_confused():
    images = Dataset("images", "train", InMemory({"image": np.zeros((4, 6, 6, 1), np.uint8)}))
    with pytest.raises(ValueError, match="these buckets are for clips"):
        BucketedClips(images, 2, 0, buckets=BUCKETS)
    with pytest.raises(ValueError, match="buckets are for images"):
        BucketedBatches(clips(), 2, 0, buckets=[(6, 6)])
    assert issubclass(BucketedClips, Batches)


def test_a_set_cut_to_one_bucket_has_the_clips_that_fill_it(caplog):
    captions = [(f"clip {i}",) for i in range(len(SIZES) * REPEATS)]
    varied = dataclasses.replace(clips(), captions=captions)
    cut = cut_to((4, 6, 6), varied)
    long = [i for i, (frames, *_) in enumerate(SIZES * REPEATS) if frames >= 4]
    assert "clips (train): left out 9 of 18 clips, which have fewer than 4 frames" in caplog.text
    assert cut.image_shape == (4, 6, 6, 1) and cut.captions == [captions[i] for i in long]
    examples = cut.source[:]
    np.testing.assert_array_equal(examples["label"], long)
    values = examples["video"][:, :, 3, 3, 0].astype(int) - 10 * np.array(long)[:, None]
    np.testing.assert_array_equal(values, np.broadcast_to(np.arange(4), values.shape))
    assert len(cut_to((1, 6, 6), varied).source) == 18
    with pytest.raises(ValueError, match="all clips of .* have fewer than 10 frames"):
        cut_to((10, 6, 6), varied)
