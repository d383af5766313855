import gzip

import numpy as np
import pytest
from idx import write_idx

from genjax.data import load_dataset
from genjax.data.sets import fashion_mnist as fashion_module


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_module, "DEBIAN", tmp_path / "absent")
    generator = np.random.default_rng(0)
    for stem, length in (("train", 50), ("t10k", 20)):
        images = generator.integers(0, 256, (length, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", images[:, 0, 0] % 10)
    return tmp_path


def test_files_are_read_as_they_are(files):
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    dataset = load_dataset("fashion_mnist", "train", files)
    np.testing.assert_array_equal(dataset.source.arrays["image"][..., 0], images)
    np.testing.assert_array_equal(dataset.source.arrays["label"], images[:, 0, 0] % 10)
    assert dataset.source.arrays["label"].dtype == np.int32 and dataset.image_shape == (28, 28, 1)
    assert dataset.num_classes == 10 and dataset.class_names[9] == "Ankle boot"


def test_splits(files):
    assert len(load_dataset("fashion_mnist", "test", files).source) == 20
    assert len(load_dataset("fashion_mnist", "train[:80%]+test", files).source) == 60
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_dataset("fashion_mnist", "valid", files)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-300], lambda data: b"<html>", lambda data: gzip.compress(b"")]
)
def test_a_damaged_file_is_named(files, damage):
    path = files / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match="train-images-idx3-ubyte.gz is damaged: .* Fetch it again"
    ):
        load_dataset("fashion_mnist", "train", files)


def test_a_file_of_other_numbers_is_no_set_of_images(files):
    path = files / "train-images-idx3-ubyte.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[2] = 0x0D  # the type of floats
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(ValueError, match="do not make an idx array of bytes"):
        load_dataset("fashion_mnist", "train", files)


def test_images_without_labels(files):
    write_idx(files / "train-labels-idx1-ubyte.gz", np.zeros(49, np.uint8))
    with pytest.raises(ValueError, match="50 images but 49 labels"):
        load_dataset("fashion_mnist", "train", files)


def test_without_the_files_it_is_a_name_like_others(tmp_path, monkeypatch):
    def stop(name, data_dir):
        raise LookupError(name, data_dir)

    monkeypatch.setattr(fashion_module, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr("genjax.data.sources._prepared_builder", stop)
    with pytest.raises(LookupError):
        load_dataset("fashion_mnist", "train", tmp_path)


@pytest.mark.skipif(
    fashion_module.find_fashion(None) is None, reason="dataset-fashion-mnist is not installed"
)
def test_the_published_files():
    train, test = (load_dataset("fashion_mnist", split) for split in ("train", "test"))
    assert np.bincount(train.source.arrays["label"]).tolist() == [6000] * 10
    assert np.bincount(test.source.arrays["label"]).tolist() == [1000] * 10
    # The published mean and standard deviation of pixels in [0, 1].
    pixels = train.source.arrays["image"] / np.float32(255)
    assert abs(pixels.mean() - 0.2860) < 1e-4 and abs(pixels.std() - 0.3530) < 1e-4
    assert train.class_names[train.source.arrays["label"][0]] == "Ankle boot"
