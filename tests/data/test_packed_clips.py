"""Rows of packed clips: what an epoch holds, and what a batch says of its patches."""

import math
from collections import Counter

import numpy as np
import pytest

from genjax.data import Dataset, InMemory, PackedClips, RowFormat
from tests.data.test_clip_buckets import SIZES, clips

PATCH = (1, 2, 3)
# Each clip of the six sizes, cut as little as patches allow.
WHOLE = [(5, 4, 9), (9, 6, 6), (4, 4, 9), (3, 6, 6), (1, 6, 6), (2, 6, 6)]
LAYOUT = RowFormat(length=60, slots=4, patch_size=PATCH)


def packed(rows=None, **changes):
    sizes = np.array(WHOLE * (len(clips().source) // len(SIZES)))
    return PackedClips(clips(), 2, 0, layout=LAYOUT, sizes=sizes, rows=rows, **changes)


def unpacked(batch, row):
    """Return the label, grid and patches of each clip of a row."""
    segments, positions = batch["segments"][row], batch["positions"][row]
    for slot in range(segments.max() + 1):
        own = segments == slot
        grid = tuple((positions[own].max(0) + 1).tolist())
        yield int(batch["label"][row, slot]), grid, batch["video"][row, own]


def test_every_epoch_has_every_clip_once():
    """Three times 30, 54, 24, 18, 6 and 12 patches fill 9/10 of 8 rows."""
    batches, orders = packed(), []
    assert batches.real_tokens == 3 * (30 + 54 + 24 + 18 + 6 + 12) / (8 * 60)
    for epoch in range(2):
        seen = []
        for position in range(8 * epoch, 8 * (epoch + 1)):
            row, batch = position % 2, batches[position // 2]
            assert batch["video"].shape == (2, 60, 6, 1) and batch["label"].shape == (2, 4)
            for label, grid, patches in unpacked(batch, row):
                size = WHOLE[label % 6]
                expected = tuple(a // b for a, b in zip(size, PATCH, strict=True))
                assert grid == expected and len(patches) == math.prod(grid)
                values = patches.reshape(grid[0], -1) - 10 * label
                np.testing.assert_array_equal(values, np.arange(grid[0])[:, None] + 0 * values)
                seen.append(label)
        assert sorted(seen) == list(range(18))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_batch_depends_on_its_step_alone_and_processes_share_it():
    whole, again = packed()[3], packed()[3]
    parts = [packed(rows=np.array([row]))[3] for row in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))
    padding = whole["segments"] < 0
    assert np.all(whole["video"][padding] == 0)


def test_random_transforms_differ_from_clip_to_clip():
    draw = lambda example, generator: {**example, "noise": generator.random()}
    batches = packed(transform=draw)
    drawn = [batch["noise"][batch["label"] > 0] for batch in map(batches.__getitem__, range(8))]
    noise = np.concatenate(drawn)
    assert len(np.unique(noise)) == len(noise) > 30


def test_clips_take_their_lengths_in_turn():
    """Twelve clips of five frames: a third each of 5, 3 and 1 frames, another third each epoch."""
    video = np.arange(12, dtype=np.float32)[:, None, None, None, None] + np.zeros((5, 2, 3, 1))
    dataset = Dataset("latents", "train", InMemory({"image": video, "label": np.arange(12)}))
    layout = RowFormat(length=9, slots=9, patch_size=PATCH, frames=(5, 3, 1))
    sizes = np.tile((5, 2, 3), (12, 1))
    batches = PackedClips(dataset, 1, 0, layout=layout, sizes=sizes, feature="image")
    assert batches.real_tokens == 1
    lengths = {}
    for step in range(4 * 8):
        batch = batches[step]
        batch["video"] = batch.pop("image")
        for label, grid, patches in unpacked(batch, 0):
            assert np.all(patches == label)
            lengths.setdefault(step // 4, []).append((label, grid[0]))
    for found in lengths.values():
        assert Counter(length for _, length in found) == {5: 4, 3: 4, 1: 4}
        assert len({label for label, _ in found}) == 12
    of_first = {length for found in lengths.values() for label, length in found if label == 0}
    assert of_first == {5, 3, 1}


@pytest.mark.parametrize(
    ("layout", "batch_size", "message"),
    [
        (RowFormat(53, 4, PATCH), 2, "a clip of 54 patches does not fit in a row of 53"),
        (RowFormat(60, 4, (2, 2, 3)), 2, "1×6×6 .* do not divide into patches of 2×2×3"),
        (LAYOUT, 9, "8 rows of 60 patches .*: take 1 to 8"),
    ],
)
def test_clips_that_do_not_fit_are_refused_at_the_start(layout, batch_size, message):
    with pytest.raises(ValueError, match=message):
        PackedClips(clips(), batch_size, 0, layout=layout, sizes=np.array(WHOLE * 3))
