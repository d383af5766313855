"""Conversion between PyTorch's and our names and layouts of parameters."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# The names of one variable's tensors, as `genjax.pretrained.load_variables` describes them.
Names = str | tuple[str, ...] | list[Any]


def from_torch(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return kernels `[out in …]` as `[… in out]`, and other tensors unchanged.

    A convolution that embeds patches, `[width channel row column]`, becomes a matrix. The features
    of a patch are (row, column, channel).
    """
    if variable.endswith("patch_embedding/kernel") and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return np.moveaxis(tensor, (1, 0), (-2, -1)) if variable.endswith("kernel") else tensor


def to_torch(variable: str, array: np.ndarray, patch_size: int | None = None) -> np.ndarray:
    """Return the tensor that `from_torch` converts to `array`.

    Args:
        patch_size: side of the patches that a convolution embeds; None if a matrix embeds them.
    """
    if variable.endswith("patch_embedding/kernel") and patch_size:
        patches = array.reshape(patch_size, patch_size, -1, array.shape[-1])
        return patches.transpose(3, 2, 0, 1)
    return np.moveaxis(array, (-2, -1), (1, 0)) if variable.endswith("kernel") else array


STACKED = ("query", "key", "value")


def part_of_stack(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the third of a tensor that is a query's, key's or value's; other tensors unchanged."""
    layer = variable.split("/")[-2]
    return np.split(tensor, 3)[STACKED.index(layer)] if layer in STACKED else tensor


def only_copy(tensor: np.ndarray, *copies: np.ndarray) -> np.ndarray:
    """Return a tensor that a file holds under several names.

    Raises:
        ValueError: the copies differ.
    """
    for i, copy in enumerate(copies, 1):
        same = tensor.shape == copy.shape
        if same:  # The check of a header passes zeros that repeat one number: compare it once.
            strides = zip(tensor.strides, copy.strides, strict=True)
            index = tuple(slice(None) if any(pair) else slice(1) for pair in strides)
            same = np.array_equal(tensor[index], copy[index])
        if not same:
            raise ValueError(f"copy {i} differs from copy 0, and this module has one for all")
    return tensor


def prefixed(ours: str, published: str, layers: Mapping[str, str]) -> dict[str, str]:
    """Return a table of layers with prefixes before our names and before the published names."""
    return {ours + name: published + other for name, other in layers.items()}


def layer_names(layers: Mapping[str, Names]) -> Callable[[str], Names]:
    """Return a function from variables to tensors, "<layer>.weight" and "<layer>.bias".

    Args:
        layers: from paths of our layers, "blocks/mlp_in", to PyTorch's. A parameter that belongs to
            no layer is listed under its whole path.
    """

    def suffixed(names: Names, suffix: str) -> Names:
        if isinstance(names, str):
            return names + suffix
        return type(names)(suffixed(name, suffix) for name in names)

    def names(variable: str) -> Names:
        path = variable.partition("/")[2]  # without the collection
        if path in layers:
            return layers[path]
        layer, _, leaf = path.rpartition("/")
        return suffixed(layers[layer], ".bias" if leaf == "bias" else ".weight")

    return names


def torch_name(variable: str) -> str:
    """Return the name of a variable of a layer or a batch norm whose path is PyTorch's."""
    words = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    _, *path, leaf = variable.split("/")
    return ".".join([*path, words.get(leaf, leaf)])


def replace_words(words: Sequence[str], patterns: Mapping[str, str]) -> list[str]:
    """Return a path's words, and replace those that a pattern matches as a whole."""
    for pattern, name in patterns.items():
        words = [re.sub(f"^(?:{pattern})$", name, word) for word in words]
    return list(words)
