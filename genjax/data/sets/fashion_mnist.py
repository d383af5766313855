"""Fashion-MNIST from its four published files, without tensorflow-datasets."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from genjax.data.dataset import Dataset, InMemory, take

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
STEMS = {"train": "train", "test": "t10k"}
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def find_fashion(data_dir: str | os.PathLike | None) -> Path | None:
    """Return the folder of the files, `data_dir` or Debian's; None if neither holds them."""
    for folder in (data_dir, DEBIAN):
        if folder and all(
            path.exists() for stem in STEMS.values() for path in _paths(Path(folder), stem)
        ):
            return Path(folder)
    return None


def load_fashion_mnist(split: str, data_dir: str | os.PathLike | None) -> Dataset | None:
    """Return Fashion-MNIST: 60,000 training and 10,000 test images of clothes in ten classes.

    Images are 28×28 grey levels (uint8). Without the files the result is None, and `load_dataset`
    turns to tensorflow-datasets.

    Args:
        data_dir: the folder of the four `.gz` files; by default Debian's.

    Raises:
        ValueError: the split is unknown, or a file is damaged.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747 (2017); MIT licence.
    """
    if (folder := find_fashion(data_dir)) is None:
        return None

    def read(stem: str) -> InMemory:
        images, labels = (_read_idx(path) for path in _paths(folder, stem))
        if len(images) != len(labels):
            raise ValueError(
                f"{len(images)} images but {len(labels)} labels in {folder}: fetch the files again"
            )
        return InMemory({"image": images[..., None], "label": labels.astype(np.int32)})

    parts = take(split, {name: lambda stem=stem: read(stem) for name, stem in STEMS.items()})
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "label")}
    return Dataset(
        "fashion_mnist", split, InMemory(arrays), num_classes=10, class_names=CLASS_NAMES
    )


def _paths(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"


def _read_idx(path: Path) -> np.ndarray:
    """Return the array of bytes in a gzipped idx file.

    The file holds two zeros, type 8, the number of axes, their lengths (big-endian) and the values.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database, section on file formats.
    """
    try:
        data = gzip.decompress(path.read_bytes())
        shape = tuple(np.frombuffer(data, ">i4", data[3], offset=4).tolist())
        if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * len(shape) + math.prod(shape):
            raise ValueError(
                f"{len(data)} bytes do not make an idx array of bytes of shape {shape}"
            )
    except (EOFError, IndexError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again") from error
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
