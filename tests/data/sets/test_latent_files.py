"""Latents on disk are read back standardized; parts are complete or absent."""

import numpy as np
import pytest

from genjax.data import Batches, load_dataset
from genjax.data.sets import latents as module
from genjax.data.sets.latents import (
    part_paths,
    parts_of,
    raw_latents,
    write_captions,
    write_latents,
    write_summary,
)

SHAPE, COUNT = (2, 3, 4), 10


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 4)


@pytest.fixture
def latents():
    return np.random.default_rng(0).normal(2.0, 3.0, (COUNT, *SHAPE)).astype(np.float32)


def encoder(latents, calls):
    def encode(rows):
        calls.append(rows)
        return latents[list(rows)], np.array(rows) % 5

    return encode


def summarize(folder, latents):
    mean, deviation = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    write_summary(
        folder,
        dict(
            shape=SHAPE,
            mean=mean.tolist(),
            deviation=deviation.tolist(),
            splits={"train": COUNT, "test": COUNT},
            num_classes=5,
            class_names=["a", "b", "c", "d", "e"],
        ),
    )
    return mean, deviation


def write(folder, latents, calls=None, **process):
    calls = [] if calls is None else calls
    return [
        count
        for split, sign in (("train", 1), ("test", -1))
        for count in write_latents(
            parts_of(folder, split, COUNT, **process), encoder(sign * latents, calls)
        )
    ]


@pytest.mark.parametrize("preload_bytes", [0, 2**20])
def test_codes_come_back_as_they_are(tmp_path, preload_bytes):
    codes = np.random.default_rng(0).integers(0, 2**24 + 5, (COUNT, 2, 3), np.int32)
    list(write_latents(parts_of(tmp_path, "train", COUNT), encoder(codes, [])))
    classes = dict(num_classes=5, class_names=list("abcde"))
    write_summary(tmp_path, dict(shape=(2, 3), splits={"train": COUNT}, **classes))
    dataset = load_dataset("latents", "train", tmp_path, preload_bytes=preload_bytes)
    read = dataset.source[:]
    np.testing.assert_array_equal(read["image"], codes)
    batch = Batches(dataset, 3, 0, image_shape=(2, 3))[0]
    assert read["image"].dtype == batch["image"].dtype == np.int32


def test_a_channel_that_never_changes_is_0(tmp_path, latents):
    latents[..., 1] = 0.25
    write(tmp_path, latents)
    mean, deviation = summarize(tmp_path, latents)
    read = load_dataset("latents", "train", tmp_path, preload_bytes=0).source[:]["image"]
    assert deviation[1] == 0 and mean[1] == 0.25
    np.testing.assert_array_equal(read[..., 1], 0)
    np.testing.assert_allclose(read[..., 0].std(), 1, rtol=1e-5)


@pytest.mark.parametrize("preload_bytes", [0, 2**20])
def test_what_was_written_comes_back_standardized(tmp_path, latents, preload_bytes):
    assert write(tmp_path, latents) == [4, 4, 2, 4, 4, 2]
    mean, deviation = summarize(tmp_path, latents)
    for split, written in (("train", latents), ("test", -latents), ("train[3:5]", latents[3:5])):
        dataset = load_dataset("latents", split, tmp_path, preload_bytes=preload_bytes)
        read = dataset.source[:]
        np.testing.assert_allclose(
            read["image"], (written - mean) / deviation, rtol=1e-6, atol=1e-6
        )
        assert dataset.image_shape == SHAPE and dataset.num_classes == 5
    assert load_dataset("latents", "test", tmp_path).source[7]["label"] == 7 % 5
    np.testing.assert_array_equal(
        np.concatenate(list(raw_latents(tmp_path, "train", COUNT, SHAPE))), latents
    )
    batch = Batches(load_dataset("latents", "train", tmp_path), 3, 0, image_shape=SHAPE)[0]
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (3, *SHAPE)


def test_captions_go_with_their_latents(tmp_path, latents):
    write(tmp_path, latents)
    summarize(tmp_path, latents)
    assert load_dataset("latents", "train", tmp_path).captions is None
    texts = {
        split: [(f"{split} {i}", "“é”\n") for i in range(COUNT)] for split in ("train", "test")
    }
    for split, captions in texts.items():
        write_captions(tmp_path, split, captions)
    for split in ("train", "test"):
        assert list(load_dataset("latents", split, tmp_path).captions) == texts[split]
    dataset = load_dataset("latents", "test[3:5]", tmp_path)
    assert list(dataset.captions) == texts["test"][3:5]
    assert [dataset.source[i]["label"] for i in (0, 1)] == [3, 4]


def test_parts_that_are_there_are_not_encoded_again(tmp_path, latents):
    write(tmp_path, latents)
    paths = part_paths(tmp_path, "train", COUNT)
    before = paths[0].read_bytes()
    paths[1].unlink()
    calls = []
    write(tmp_path, latents, calls)
    assert calls == [range(4, 8)]
    assert paths[0].read_bytes() == before and paths[1].exists()


def test_a_failed_part_is_absent(tmp_path, latents):
    def failing(rows):
        if rows.start:
            raise OSError("disk full")
        return latents[list(rows)], np.zeros(len(rows))

    with pytest.raises(OSError):
        list(write_latents(parts_of(tmp_path, "train", COUNT), failing))
    assert [path.exists() for path in part_paths(tmp_path, "train", COUNT)] == [True, False, False]


def test_processes_share_the_parts(tmp_path, latents):
    assert write(tmp_path, latents, process=0, processes=2) == [4, 2, 4, 2]
    assert write(tmp_path, latents, process=1, processes=2) == [4, 4]
    mean, deviation = summarize(tmp_path, latents)
    read = load_dataset("latents", "train", tmp_path).source[:]["image"]
    np.testing.assert_allclose(read, (latents - mean) / deviation, rtol=1e-6, atol=1e-6)


def test_without_latents_the_error_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="experiments.encode"):
        load_dataset("latents", "train", tmp_path)
    with pytest.raises(FileNotFoundError, match="config.space.directory"):
        load_dataset("latents", "train")
