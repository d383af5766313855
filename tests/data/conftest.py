import json

import numpy as np
import pytest
from idx import write_idx
from PIL import Image

from genjax.data import load_dataset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def digits(data_dir):
    return load_dataset("digits", data_dir=data_dir)


@pytest.fixture(scope="session")
def sources_of_every_kind(tmp_path_factory, digits):
    """Return by kind a dataset of at least 24 examples."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("sources")
    for stem in ("train", "t10k"):
        images = generator.integers(0, 256, (30, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", images[:, 0, 0] % 10)
    for kind in ("classes", "captions", "sizes"):
        (folder / kind / "train/one").mkdir(parents=True)
        for i in range(30):
            shape = (9, 8 + i % 3 * (kind == "sizes"), 3)
            image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
            image.save(folder / kind / f"train/one/{i}.png")
        (folder / kind / "train/one/damaged.png").write_bytes(b"")
    rows = [json.dumps({"file_name": f"one/{i}.png", "text": f"number {i}"}) for i in range(30)]
    (folder / "captions/train/metadata.jsonl").write_text("\n".join(rows))
    return {
        "digits": digits,
        "fashion_mnist": load_dataset("fashion_mnist", "train", folder),
        "emoji": load_dataset("emoji"),
        "classes": load_dataset("folder", "train", folder / "classes"),
        "captions": load_dataset("folder", "train", folder / "captions", preload_bytes=0),
        "sizes": load_dataset("folder", "train", folder / "sizes"),
    }
