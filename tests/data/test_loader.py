import itertools
import os
import time

import numpy as np
import pytest

from genjax.data import Batches, Dataset, InMemory, compose, flip_example, random_crop, reading_rate
from genjax.data.dataset import OnDisk, num_threads


def numbered(length: int, image_shape=(2, 2, 1)) -> Dataset:
    """Images whose pixels and labels hold the example's number."""
    labels = np.arange(length, dtype=np.int32)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (length, *image_shape))
    return Dataset(
        "numbered", "train", InMemory({"image": images, "label": labels}), image_shape, None
    )


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def noisy(example, generator):
    return {"image": example["image"] + generator.random(), "label": example["label"]}


@pytest.mark.parametrize("transform", [None, noisy])
@pytest.mark.parametrize(
    "rows", [np.arange(8), np.arange(4), np.arange(6, 8), np.array([0, 1, 4, 5]), np.array([7])]
)
def test_a_process_gets_its_rows_of_the_whole_batch(rows, transform):
    for step in (0, 3, 5):  # the fourth batch begins in one epoch and ends in the next
        whole = Batches(numbered(30), 8, seed=3, transform=transform)[step]
        part = Batches(numbered(30), 8, seed=3, transform=transform, rows=rows)[step]
        assert_equal({name: a[rows] for name, a in whole.items()}, part)


@pytest.mark.parametrize(
    "kind", ["digits", "fashion_mnist", "emoji", "classes", "captions", "sizes"]
)
def test_batches_of_every_source(sources_of_every_kind, kind, monkeypatch):
    """Batches are equal for 1, 2 and 4 processes, and for any number of threads."""
    dataset = sources_of_every_kind[kind]
    random = compose(random_crop(8), flip_example)
    for transform in [random] if kind == "sizes" else [None, random]:
        expected = [Batches(dataset, 8, 3, transform=transform)[step] for step in range(6)]
        for count in (1, 2, 4):
            monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
            streams = [
                Batches(dataset, 8, 3, transform=transform, rows=rows).iterate(0, 6)
                for rows in np.split(np.arange(8), count)
            ]
            for batch, *parts in zip(expected, *streams, strict=True):
                assert_equal(batch, {n: np.concatenate([part[n] for part in parts]) for n in batch})
    assert ("index" in expected[0]) == (kind in ("emoji", "captions"))


def test_reading_rate(sources_of_every_kind):
    slow = lambda example, generator: time.sleep(0.01) or example
    batches = Batches(sources_of_every_kind["captions"], 4, seed=0, transform=slow)
    most = 2 * num_threads() / 0.01  # the rate of twice as many threads
    assert 20 < reading_rate(batches, 8) < most


@pytest.mark.parametrize("transform", [None, noisy])
def test_iteration_restarts_at_any_step(digits, transform):
    batches = Batches(digits, 64, seed=0, transform=transform)
    for start in (0, 21, 1_000_000):
        for step, batch in enumerate(itertools.islice(batches.iterate(start), 5), start):
            assert_equal(batch, batches[step])
    assert [batch["label"].tolist() for batch in batches.iterate(3, stop=5)] == [
        batches[step]["label"].tolist() for step in (3, 4)
    ]


def test_every_epoch_has_every_example_once_in_a_new_order():
    batches = Batches(numbered(100), 32, seed=1)
    # 8 epochs, not aligned with batches.
    stream = np.concatenate([batches[step]["label"] for step in range(25)])
    epochs = stream.reshape(8, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_image_and_label_stay_together():
    batch = Batches(numbered(100), 32, seed=1)[7]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_numbers_below_zero_are_refused():
    dataset = numbered(10)
    with pytest.raises(ValueError, match="the seed of batches of .* is -1; take 0 or more"):
        Batches(dataset, 2, seed=-1)
    with pytest.raises(IndexError, match="batches have no step -1: they begin with step 0"):
        Batches(dataset, 2, seed=0)[-1]


def test_the_seed_decides():
    orders = [Batches(numbered(100), 100, seed)[0]["label"].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    # Pinned: a library that changes its stream would silently break the exactness of resuming.
    assert orders[0][:5] == [82, 36, 20, 5, 93]


def test_without_shuffling_the_order_is_the_stored_one():
    batches = Batches(numbered(10), 4, seed=0, shuffle=False)
    assert [batches[step]["label"].tolist() for step in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
    ]


def test_random_transforms_differ_by_position_not_by_example():
    dataset = numbered(10)
    draws = [
        Batches(dataset, 5, seed, transform=noisy, shuffle=False)[step]["image"][:, 0, 0, 0] % 1
        for seed in (0, 1)
        for step in range(4)
    ]
    assert len(np.unique(draws)) == 2 * 4 * 5


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_transform_may_write_into_its_example(in_memory):
    """Otherwise a batch would depend on those before it."""
    images = np.ones((30, 2, 2, 1), np.uint8)
    records = [{"image": image} for image in images]
    source = InMemory({"image": images}) if in_memory else OnDisk(records, {"image": images.dtype})

    def erase(example, generator):
        example["image"][generator.integers(2)] = 0
        return example

    batches = Batches(Dataset("ones", "train", source, (2, 2, 1)), 30, seed=0, transform=erase)
    for step in range(3):
        assert batches[step]["image"].sum() == 30 * 2
    assert images.all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(batch_size=31), "batch size 31 for the 30 examples of numbered"),
        (dict(batch_size=0), "batch size 0"),
        (
            dict(batch_size=8, image_shape=(4, 4, 1)),
            r"shape \(2, 2, 1\), the network takes \(4, 4, 1\)",
        ),
        (
            dict(batch_size=8, image_shape=(2, 2, 3), transform=noisy),
            r"the network takes \(2, 2, 3\)",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(numbered(30), seed=0, **arguments)


def test_images_that_vary_in_size_need_a_transform():
    records = [{"image": np.zeros((size, 9, 3), np.uint8)} for size in range(4, 10)]
    source = OnDisk(records, {"image": np.dtype(np.uint8)})
    dataset = Dataset("photos", "train", source, (None, None, 3), None)
    with pytest.raises(ValueError, match="photos .train. vary in size: give a transform"):
        Batches(dataset, 2, seed=0)
    batches = Batches(
        dataset, 2, 0, transform=lambda e, _: {"image": e["image"][:4, :4]}, image_shape=(4, 4, 3)
    )
    assert batches[0]["image"].shape == (2, 4, 4, 3)
    batches = Batches(dataset, 6, seed=0, transform=lambda example, _: example)
    with pytest.raises(ValueError, match=r"'image' of shapes \(4, 9, 3\) and \(9, 9, 3\): give a"):
        batches[0]


def test_what_a_transform_raises_reaches_the_loop():
    def broken(example, generator):
        raise RuntimeError("corrupt image")

    with pytest.raises(RuntimeError, match="corrupt image"):
        next(Batches(numbered(30), 8, seed=0, transform=broken).iterate())
