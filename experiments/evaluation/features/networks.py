"""Pretrained networks as functions of pictures, and their features of many pictures."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from genjax import pretrained
from genjax.data import to_float
from genjax.data.tokenizers import Tokenizer
from genjax.devices.mesh import batch_sharding, make_mesh, replicated
from genjax.models.encoders.clip import CLIP
from genjax.models.encoders.dinov2 import dinov2_features
from genjax.models.encoders.inception import (
    Inception,
    inception_features,
    preprocess_clean,
    preprocess_pytorch,
)
from genjax.pretrained import inception
from genjax.pretrained.safetensors_io import NAMES
from genjax.training.progress import ProgressBar

BATCH = 64  # images at once on each device


class FeatureNetwork(NamedTuple):
    """A pretrained network as a function of pictures.

    Attributes:
        description, resizing: the network, and how it resizes pictures, in words.
        weights: SHA-256 of their file.
        antialiasing: whether resizing filters before it reduces.
        apply: from variables and bytes, `[batch height width channels]`, to features,
            `[batch features]`, and logits, `[batch classes]`, or None.
    """

    description: str
    resizing: str
    weights: str
    variables: Any
    apply: Callable[[Any, Array], tuple[Array, Array | None]]
    antialiasing: bool = False


def weights_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of all safetensors of a folder in order."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        whole = [file for name in NAMES if (file := path / f"{name}.safetensors").exists()]
        files = whole[:1] or sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while part := stream.read(2**24):
                digest.update(part)
    return digest.hexdigest()


def _inception(path: str) -> FeatureNetwork:
    module, variables = inception.load(path)
    if module != Inception():
        raise ValueError(
            f"{path} holds an Inception of {module.num_classes} classes; FID needs the one of "
            f"{inception.FID_CLASSES} classes, see genjax/pretrained/inception.py"
        )
    return FeatureNetwork(
        "Inception-v3 of FID (TensorFlow's of 2015-12-05)",
        "to 299×299 by TensorFlow 1's bilinear interpolation, without antialiasing",
        weights_digest(path),
        variables,
        lambda variables, images: inception_features(variables, to_float(images)),
    )


def _resized_inception(path: str, preprocess: Callable, **described: Any) -> FeatureNetwork:
    """Return the Inception of FID without logits, after another library's resizing."""
    features = functools.partial(inception_features, preprocess=preprocess)
    apply = lambda variables, images: (features(variables, to_float(images))[0], None)
    return _inception(path)._replace(apply=apply, **described)


def _dinov2(path: str) -> FeatureNetwork:
    module, variables = pretrained.load(path)
    return FeatureNetwork(
        f"DINOv2 of width {module.width}, depth {module.depth} and {module.num_registers} "
        "registers, class token",
        "to 224×224 by antialiased bicubic interpolation, not rounded after",
        weights_digest(path),
        variables,
        lambda variables, images: (dinov2_features(module, variables, to_float(images)), None),
        antialiasing=True,
    )


def _clip(path: str) -> tuple[CLIP, Any, Tokenizer, str]:
    module, variables = pretrained.load(path)
    if not isinstance(module, CLIP):
        raise ValueError(
            f"{path} holds a {type(module).__name__} alone; a CLIP score needs a CLIPModel"
        )
    return module, variables, Tokenizer(path), weights_digest(path)


LOADERS = {
    "inception": _inception,
    "clean_inception": functools.partial(
        _resized_inception,
        preprocess=preprocess_clean,
        resizing="to 299×299 by Pillow's antialiased bicubic interpolation, not rounded after",
        antialiasing=True,
    ),
    "pytorch_inception": functools.partial(
        _resized_inception,
        preprocess=preprocess_pytorch,
        resizing="to 299×299 by PyTorch's bilinear interpolation, without antialiasing",
    ),
    "dinov2": _dinov2,
    "clip": _clip,
}


@functools.cache
def load_network(name: str, path: str) -> FeatureNetwork | tuple[CLIP, Any, Tokenizer, str]:
    """Return an evaluator's network with the weights at `path`.

    CLIP is more than a function of pictures, so its module, its variables, its tokenizer and the
    weights' SHA-256 are returned.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are another network's.
    """
    return LOADERS[name](path)


@functools.cache
def _program(apply: Callable, mesh: Mesh) -> Callable:
    return jax.jit(
        lambda variables, batch: apply(variables, *batch),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def in_batches(
    apply: Callable, variables: Any, read: Callable[[slice], tuple[np.ndarray, ...]], count: int
) -> Iterator[Any]:
    """Yield what `apply(variables, *arrays)` returns for `count` examples, batch by batch.

    It runs on this process' devices.

    Args:
        read: returns the arrays of a slice of examples. It is called for the next batch while the
            devices compute the current one.
    """
    devices = jax.local_devices()
    size = min(BATCH * len(devices), count + -count % len(devices))
    mesh = make_mesh({"data": -1}, size, devices)
    program, variables = _program(apply, mesh), jax.device_put(variables, replicated(mesh))
    fetch = lambda outputs, length: jax.tree.map(lambda a: np.asarray(a)[:length], outputs)
    ahead = None
    with ProgressBar("evaluating", 0, count, "images") as progress:
        for start in range(0, count, size):
            arrays = read(slice(start, min(start + size, count)))
            length = len(arrays[0])
            filled = tuple(np.concatenate([a, np.repeat(a[:1], size - length, 0)]) for a in arrays)
            outputs = program(variables, filled), length
            if ahead:
                yield fetch(*ahead)
                progress.update(start)
            ahead = outputs
        yield fetch(*ahead)
        progress.update(count)


def features_of(
    network: FeatureNetwork, images: UInt8[np.ndarray, "images height width channels"]
) -> tuple[Float[np.ndarray, "images features"], Float[np.ndarray, "images classes"] | None]:
    """Return features of pictures in bytes, and logits if the network has any."""
    batches = in_batches(
        network.apply, network.variables, lambda part: (images[part],), len(images)
    )
    features, logits = zip(*batches, strict=True)
    return np.concatenate(features), None if logits[0] is None else np.concatenate(logits)
