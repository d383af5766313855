import builtins
import http.server
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import genjax
from genjax.data import Batches, InMemory, load_dataset, sources
from genjax.data.dataset import OnDisk


@pytest.fixture
def no_network(monkeypatch):
    def refuse(address, timeout):
        raise ConnectionRefusedError(address)

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def mocked(tmp_path, monkeypatch):
    """Datasets of random examples instead of downloads."""
    monkeypatch.setattr(sources, "_any_host_answers", lambda urls: True)
    with tfds.testing.mock_data(num_examples=20, data_dir=tmp_path):
        yield


class Squares(tfds.core.GeneratorBasedBuilder):
    """A dataset made from one downloaded file."""

    VERSION = tfds.core.Version("1.0.0")
    host = "http://127.0.0.1:9"  # the discard port, where nothing listens
    url_infos = {
        f"{host}/squares.txt": tfds.core.download.checksums.UrlInfo(
            size=2,
            checksum="6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918",
            filename="squares.txt",
        )
    }

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
            "caption": tfds.features.Text(),
            "box": tfds.features.BBoxFeature(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download(f"{self.host}/squares.txt"))}

    def _generate_examples(self, path):
        for i in range(int(path.read_text())):
            yield (
                i,
                {
                    "image": Image.new("RGB", (4, 4), (i, i, i)),
                    "label": i % 2,
                    "caption": f"square {i}",
                    "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                },
            )


def test_digits_are_those_of_scikit_learn(digits, data_dir):
    from sklearn.datasets import load_digits

    test = load_dataset("digits", "test", data_dir=data_dir)
    assert len(digits.source) == 1437 and len(test.source) == 360
    assert digits.image_shape == (8, 8, 1) and digits.num_classes == 10
    assert (
        digits.source[3]["image"].dtype == np.uint8 and digits.source[3]["label"].dtype == np.int32
    )

    values, labels = load_digits(return_X_y=True)
    expected = {
        bytes(round(v * 255 / 16) for v in value) + bytes([label])
        for value, label in zip(values, labels, strict=True)
    }
    stored = [
        {
            image.tobytes() + bytes([label])
            for image, label in zip(*split.source[:].values(), strict=True)
        }
        for split in (digits, test)
    ]
    assert len(expected) == 1797
    assert stored[0] | stored[1] == expected and not stored[0] & stored[1]


def test_digits_splits_are_stratified(digits, data_dir):
    test = load_dataset("digits", "test", data_dir=data_dir)
    in_train, in_test = (np.bincount(split.source.arrays["label"]) for split in (digits, test))
    assert np.abs(in_test - 360 / 1797 * (in_train + in_test)).max() < 1


def test_split_language(digits, data_dir):
    first, rest = (
        load_dataset("digits", split, data_dir) for split in ("train[:80%]", "train[80%:]")
    )
    assert len(first.source) == 1150 and len(rest.source) == 287
    rejoined = np.concatenate([first.source.arrays["image"], rest.source.arrays["image"]])
    np.testing.assert_array_equal(rejoined, digits.source.arrays["image"])
    with pytest.raises(
        ValueError,
        match="Unknown split 'trian'.*'test'.*'train'|Unknown split 'trian'.*'train'.*'test'",
    ):
        load_dataset("digits", "trian", data_dir)


def run_python(code: str, data_dir) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=pathlib.Path(genjax.__file__).parents[1],
        env=os.environ | {"TFDS_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    return result.stdout


@pytest.mark.slow
def test_two_processes_prepare_at_once_without_tensorflow(tmp_path):
    code = """
        import sys
        from genjax.data import Batches, load_dataset, sources
        prepare = sources._prepare
        sources._prepare = lambda *arguments: (print("prepares"), prepare(*arguments))
        print(next(Batches(load_dataset("digits"), 64, seed=0).iterate(7))["label"].sum())
        assert "tensorflow" not in sys.modules
    """
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(run_python, [code] * 2, [tmp_path] * 2)
    lines = first.splitlines() + second.splitlines()
    assert lines.count("prepares") == 1 and len(lines) == 3, (
        "one prepares, and tensorflow-datasets is silent"
    )
    assert first.splitlines()[-1] == second.splitlines()[-1]
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]


def test_import_loads_no_data_library(tmp_path):
    code = """
        import sys, genjax.data
        print({"tensorflow_datasets", "grain", "sklearn", "PIL", "array_record"} & set(sys.modules))
    """
    assert run_python(code, tmp_path) == "set()\n"


@pytest.mark.parametrize("name, shape", [("mnist", (28, 28, 1)), ("cifar10:3.0.2", (32, 32, 3))])
def test_any_tfds_name(mocked, name, shape):
    dataset = load_dataset(name)
    assert dataset.image_shape == shape and dataset.num_classes == 10
    assert isinstance(dataset.source, InMemory) and set(dataset.source[0]) == {"image", "label"}
    batch = Batches(dataset, 8, seed=0, image_shape=shape)[1]
    assert batch["image"].shape == (8, *shape) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32


def test_large_sets_are_read_by_record(digits, data_dir):
    on_disk = load_dataset("digits", data_dir=data_dir, preload_bytes=1437 * (64 + 4) - 1)
    assert isinstance(on_disk.source, OnDisk) and isinstance(digits.source, InMemory)
    for index in (5, slice(3, 40), np.array([9, 2])):
        here, there = digits.source[index], on_disk.source[index]
        for name in ("image", "label"):
            np.testing.assert_array_equal(here[name], there[name])
            assert here[name].dtype == there[name].dtype
    assert Batches(on_disk, 16, seed=0)[2]["image"].shape == (16, 8, 8, 1)


@pytest.mark.parametrize(
    "name, nearest", [("mnits", "mnist"), ("cifar-10", "cifar10"), ("digit", "digits")]
)
def test_unknown_name_names_the_nearest(tmp_path, name, nearest):
    with pytest.raises(ValueError, match=f"no dataset is called '{name}'.*{nearest}") as error:
        load_dataset(name, data_dir=tmp_path)
    names = str(error.value).partition(" names are ")[2].split(", ")
    assert len(names) == len(set(names))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["mnist/rotated", "mnist:99.0.0"])
def test_unknown_configuration(tmp_path, name):
    with pytest.raises(ValueError, match="rotated not found|99.0.0, only: 3"):
        load_dataset(name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnist/64", "'fashion_mnist/64' takes no option 'size'; it takes none"),
        ("folder/64", "'folder/64' takes no option 'size'; it takes channels, preload_bytes"),
        ("clips/32x48", "'clips/32x48': after the slash is a side in pixels, such as 32"),
    ],
)
def test_a_side_is_not_ignored(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "option"),
    [("clips", "num_frames"), ("clips", "frames_per_second"), ("sound_folder", "seconds")],
)
def test_a_word_in_place_of_a_number_is_named(name, option, tmp_path):
    with pytest.raises(ValueError, match=f"'{option}' of .*'{name}' is 'many'; it must be a num"):
        load_dataset(name, data_dir=tmp_path, **{option: "many"})


def test_absent_without_network_says_what_to_do(tmp_path, no_network):
    start = time.monotonic()
    with pytest.raises(ConnectionError) as error:
        load_dataset("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    for hint in (
        "'mnist'",
        'tfds.builder("mnist"',
        str(tmp_path / "downloads/manual"),
        "train-images",
        "digits",
    ):
        assert hint in str(error.value)


def test_a_network_that_swallows_packets(tmp_path, monkeypatch):
    def swallow(address, timeout):
        time.sleep(5)  # a name look-up may take longer than the given time-out
        raise TimeoutError

    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", swallow)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="no answer"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < 4


def test_a_proxy_replaces_the_host(tmp_path, monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConnectionError):
        load_dataset("mnist", data_dir=tmp_path)
    assert asked == [("proxy.invalid", 3128)]


def test_one_host_that_answers_is_enough(monkeypatch):
    """The second answers after the first has refused; both are asked without the proxy."""
    asked, refused = [], threading.Event()

    def connect(address, timeout):
        asked.append(address)
        if address[0] == "one.invalid":
            refused.set()
            raise ConnectionRefusedError
        refused.wait(60)
        time.sleep(0.1)  # until the refusal has arrived
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(sources, "CONNECT_SECONDS", 60)
    monkeypatch.setattr(socket, "create_connection", connect)
    proxies = {"https": "http://proxy.invalid:3128"}
    monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies)
    monkeypatch.setenv("no_proxy", "one.invalid")
    urls = ["https://one.invalid/a", "http://other.invalid/b"]
    assert sources._any_host_answers([urlsplit(url) for url in urls])
    assert sorted(asked) == [("one.invalid", 443), ("other.invalid", 80)]


def test_files_fetched_by_hand_need_no_network(tmp_path):
    with pytest.raises(ConnectionError, match="(?s)no answer from 127.0.0.1:9.*/squares.txt"):
        load_dataset("squares", data_dir=tmp_path)
    (tmp_path / "downloads/manual").mkdir(parents=True)
    (tmp_path / "downloads/manual/squares.txt").write_text("12")
    dataset = load_dataset("squares", data_dir=tmp_path)
    assert set(dataset.source[0]) == {"image", "label", "box"}, "text is no array"
    assert sorted(dataset.source.arrays["image"][:, 3, 3, 2]) == list(range(12))


def test_a_reachable_host_is_downloaded_from(tmp_path, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"12")

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        infos = {f"{host}/squares.txt": info for info in Squares.url_infos.values()}
        monkeypatch.setattr(Squares, "host", host)
        monkeypatch.setattr(Squares, "url_infos", infos)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert len(load_dataset("squares", data_dir=tmp_path).source) == 12
        server.shutdown()
    shutil.rmtree(tmp_path / "squares")  # what was downloaded stays
    assert len(load_dataset("squares", data_dir=tmp_path).source) == 12


def test_preparing_may_need_tensorflow(tmp_path, monkeypatch):
    def generate(self, path):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(sources, "_any_host_answers", lambda urls: True)
    monkeypatch.setattr(Squares, "_split_generators", generate)
    with pytest.raises(ImportError, match="(?s)pip install tensorflow-cpu.*download_and_prepare"):
        load_dataset("squares", data_dir=tmp_path)


def test_manual_download_quotes_its_instructions(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="downloads/manual:\nmanual_dir should contain two files: ILSVRC2012",
    ):
        load_dataset("imagenet2012", data_dir=tmp_path)


def test_without_the_data_libraries(digits, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] in ("tensorflow_datasets", "grain"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="'digits'.*pip install tensorflow-datasets"):
        load_dataset("digits")
    batches = Batches(digits, 64, seed=0)
    assert len(next(batches.iterate())["label"]) == 64  # examples in memory need no grain
    with pytest.raises(ImportError, match="pip install grain"):
        Batches(digits, 64, seed=0, transform=lambda example, generator: example).iterate()


class Films(tfds.core.GeneratorBasedBuilder):
    """A dataset of videos, made from nothing, whose features need no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "video": tfds.features.Tensor(shape=(3, 4, 6, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            yield i, {"video": film(i), "label": i % 2}


def film(number):
    return np.random.default_rng(number).integers(0, 256, (3, 4, 6, 3), np.uint8)


def test_a_set_of_videos_by_its_name(tmp_path):
    dataset = load_dataset("films", "train", tmp_path)
    assert dataset.image_shape == (3, 4, 6, 3) and dataset.num_classes == 2
    assert isinstance(dataset.source, InMemory)
    videos = {video.tobytes() for video in dataset.source[:]["video"]}
    assert videos == {film(i).tobytes() for i in range(5)}
    on_disk = load_dataset("films", "train", tmp_path, preload_bytes=1)
    assert isinstance(on_disk.source, OnDisk) and on_disk.image_shape == (3, 4, 6, 3)
    batch = Batches(on_disk, 2, seed=0, image_shape=(3, 4, 6, 3))[0]
    assert batch["video"].shape == (2, 3, 4, 6, 3) and batch["video"].dtype == np.uint8


class Movies(Films):
    """A dataset with the usual feature for videos, which cannot be made without TensorFlow."""

    def _info(self):
        features = tfds.features.FeaturesDict({"video": tfds.features.Video(shape=(3, 4, 6, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed")
def test_videos_that_need_tensorflow_say_so(tmp_path):
    with pytest.raises(
        ImportError, match="'movies' needs TensorFlow even to be read: pip install tensorflow-cpu"
    ):
        load_dataset("movies", "train", tmp_path)


def arrays_alone(split):
    return np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, int)


def test_a_function_that_returns_no_data_set_is_named():
    with pytest.raises(ValueError, match="arrays_alone.* returned a tuple, not a Dataset"):
        load_dataset(f"{__name__}.arrays_alone", "train")
