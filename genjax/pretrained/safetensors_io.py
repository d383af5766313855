"""From safetensors files to the variables of a Flax module, and back."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

NAMES = ("diffusion_pytorch_model", "model")  # of the weights in a folder, less their extension
_TYPES = dict(
    F64="float64",
    F32="float32",
    F16="float16",
    BF16="bfloat16",
    I64="int64",
    I32="int32",
    I16="int16",
    I8="int8",
    U8="uint8",
    BOOL="bool",
    F8_E4M3="float8_e4m3fn",
    F8_E5M2="float8_e5m2",
)


def _map_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, mapped to memory: read where they are looked at, bfloat16 ones too, which the library's NumPy
    reader does not know. The format: the header's length in 8 bytes, a header in JSON, the numbers."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError(f"{path} is no safetensors file, or not a whole one")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != path.stat().st_size:
        raise ValueError(
            f"{path} is {path.stat().st_size} bytes and its header promises {end}: download it again"
        )
    if end == 8 + length:
        return {}
    data = np.memmap(path, np.uint8, "r", 8 + length)
    return {
        name: data[slice(*entry["data_offsets"])]
        .view(jnp.dtype(_TYPES[entry["dtype"]]))
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def open_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of a folder that holds one file or several with their index; none is read yet.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is cut short.
    """
    path = Path(path)
    if not path.is_dir():
        return _map_file(path)
    for name in NAMES:
        if (path / f"{name}.safetensors").exists():
            return _map_file(path / f"{name}.safetensors")
        index = path / f"{name}.safetensors.index.json"
        if index.exists():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {name: tensor for file in files for name, tensor in _map_file(path / file).items()}
    raise FileNotFoundError(
        f"{path} holds neither {' nor '.join(f'{name}.safetensors' for name in NAMES)}, nor an index of several; other "
        "formats are not read"
    )


def from_torch(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Kernels `[out in …]` as `[… in out]`; all else as it is."""
    return np.moveaxis(tensor, (1, 0), (-2, -1)) if variable.endswith("kernel") else tensor


def to_torch(variable: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch`."""
    return np.moveaxis(array, (-2, -1), (1, 0)) if variable.endswith("kernel") else array


def variable_path(key_path: tuple) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _names(name: str | Sequence[str], leaf: Any) -> tuple[list[str], bool]:
    """The tensors of a variable, and whether it is a stack of them."""
    if isinstance(name, str):
        if "{}" not in name:
            return [name], False
        name = [name.format(layer) for layer in range(leaf.shape[0])]
    return [layer for layer, _ in zip(name, range(leaf.shape[0]), strict=True)], True


def load_variables(
    path: str | os.PathLike,
    expected: Any,
    rename: Callable[[str], str | Sequence[str]],
    convert: Callable[[str, np.ndarray], np.ndarray] = from_torch,
    ignore: Callable[[str, np.ndarray], bool] = lambda tensor, array: False,
) -> Any:
    """The tensors of a safetensors file or folder in the structure, shapes and types of `expected`.

    Tensors are read one by one. Where leaves of `expected` have a sharding the results are arrays on those devices, and each
    process reads only its own parts; without, they are NumPy arrays.

    Args:
        expected: pytree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(module.init, …)` returns it.
        rename: from a variable's path, "params/block/dense/kernel", to the name of its tensor. With "{}" in it the
            variable is a stack of scanned layers and the name that of each layer's tensor, counted from 0; where they
            are counted otherwise, the names of all layers.
        convert: from a variable's path and its tensor (one layer's) to the array in our layout.
        ignore: whether a tensor that no variable asked for, given its name and value, may be left out.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    tensors = open_tensors(path)
    faults, used = [], set()

    def read(key_path: tuple, leaf: Any) -> Any:
        variable = variable_path(key_path)
        names, stacked = _names(rename(variable), leaf)
        shape = leaf.shape[stacked:]
        layers = []
        for name in names:
            used.add(name)
            if name not in tensors:
                faults.append(f"missing: {name}, for {variable} {shape}")
                continue
            tensor = tensors[name]
            try:
                layers.append(convert(variable, tensor))
            except ValueError as error:  # such as a transposition of another number of dimensions
                faults.append(f"misshapen: {name} {tensor.shape}, for {variable} {shape}: {error}")
                continue
            if layers[-1].shape != shape:
                faults.append(
                    f"misshapen: {name} {tensor.shape} gives {layers[-1].shape}, for {variable} {shape}"
                )
        if faults:
            return None

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if not stacked:
                return np.array(layers[0][index], leaf.dtype)
            chosen = layers[index[0]]
            out = np.empty((len(chosen), *layers[0][index[1:]].shape), leaf.dtype)
            for i, layer in enumerate(chosen):
                out[i] = layer[index[1:]]
            return out

        if leaf.sharding is None:
            return part((slice(None),) * len(leaf.shape))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    variables = jax.tree.map_with_path(read, expected)
    extra = sorted(name for name in tensors.keys() - used if not ignore(name, tensors[name]))
    faults += [f"extra: {name} {tensors[name].shape}" for name in extra]
    if faults:
        raise ValueError(f"{path} does not hold the variables of this module:\n" + "\n".join(faults))
    return variables


def save_variables(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    variables: Any,
    rename: Callable[[str], str | Sequence[str]],
    invert: Callable[[str, np.ndarray], np.ndarray] = to_torch,
    *,
    name: str = NAMES[0],
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes what `load_variables` reads, as diffusers and transformers do: `config.json`, and `name`.safetensors, or
    several files and their index where it would be larger than `shard_bytes`.

    Args:
        rename, invert: as `rename` and the inverse of `convert` of `load_variables`.
        name: "diffusion_pytorch_model" for diffusers, "model" for transformers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, size = [{}], 0  # of each file: tensor name to what it is made of
    for key_path, leaf in jax.tree.leaves_with_path(variables):
        variable = variable_path(key_path)
        tensors, stacked = _names(rename(variable), leaf)
        nbytes = leaf.nbytes // len(tensors)
        for layer, tensor in enumerate(tensors):
            if files[-1] and size + nbytes > shard_bytes:
                files, size = [*files, {}], 0
            files[-1][tensor] = variable, leaf, layer if stacked else ...
            size += nbytes
    names = [f"{name}.safetensors"]
    if len(files) > 1:
        names = [f"{name}-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
        weight_map = {tensor: file for file, tensors in zip(names, files, strict=True) for tensor in tensors}
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
        index = json.dumps(dict(metadata=dict(total_size=total), weight_map=weight_map), indent=2)
        (folder / f"{name}.safetensors.index.json").write_text(index)
    for file, tensors in zip(names, files, strict=True):
        arrays = {
            tensor: np.asarray(invert(variable, np.asarray(leaf[layer])), order="C")
            for tensor, (variable, leaf, layer) in tensors.items()
        }
        save_file(arrays, folder / file, metadata=dict(format="pt"))
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
