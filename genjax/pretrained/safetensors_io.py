"""From safetensors files to the variables of a Flax module, and back."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from genjax.pretrained.layouts import Names, from_torch, to_torch

NAMES = ("diffusion_pytorch_model", "model")  # of the weights in a folder, less their extension
_TYPES = (
    dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", BOOL="bool")
    | dict(I64="int64", I32="int32", I16="int16", I8="int8", U8="uint8")
    | dict(F8_E4M3="float8_e4m3fn", F8_E5M2="float8_e5m2")
)


def _map_file(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a file to memory, so that each is read when it is used.

    The library's NumPy reader does not know bfloat16. The format is: the header's length in 8
    bytes, a header in JSON, the numbers.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError(f"{path} is no safetensors file, or not a whole one")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != path.stat().st_size:
        size = path.stat().st_size
        raise ValueError(f"{path} is {size} bytes and its header promises {end}: download it again")
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
    """Map the tensors of a safetensors file or folder to memory; none is read yet.

    A folder holds one file, or several with their index.

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
            return {name: array for file in files for name, array in _map_file(path / file).items()}
    files = " nor ".join(f"{name}.safetensors" for name in NAMES)
    raise FileNotFoundError(
        f"{path} holds neither {files}, nor an index of several; other formats are not read"
    )


def variable_path(key_path: tuple) -> str:
    """Return the path of a leaf as functions here are given it, "params/blocks/mlp_in/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def layers_of(names: Names, leaf: Any) -> tuple[list[tuple[str, ...]], bool]:
    """Return the names of the tensors of each layer of a variable, and whether it is a stack."""
    each = lambda name: (name,) if isinstance(name, str) else tuple(name)
    if isinstance(names, list):
        layers = [each(layer) for layer in names]
    elif any("{}" in name for name in each(names)):
        layers = [tuple(part.format(i) for part in each(names)) for i in range(leaf.shape[0])]
    else:
        return [each(names)], False
    return [layer for layer, _ in zip(layers, range(leaf.shape[0]), strict=True)], True


def load_variables(
    path: str | os.PathLike,
    expected: Any,
    rename: Callable[[str], Names],
    convert: Callable[..., np.ndarray] = from_torch,
    ignore: Callable[[str, np.ndarray], bool] = lambda name, tensor: False,
) -> Any:
    """Read a safetensors file or folder into the structure, shapes and types of `expected`.

    Tensors are read one by one. Where leaves of `expected` have a sharding, the results are arrays
    on those devices, and each process reads only its own parts. Without, they are NumPy arrays.

    Args:
        expected: pytree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(module.init, …)` returns it.
        rename: from a variable's path, "params/block/dense/kernel", to the name of its tensor.
            With "{}" in the name the variable is a stack of layers, counted from 0, and each
            layer has a tensor. A list names the layers one by one. A tuple names several
            tensors, all of which `convert` takes.
        convert: from a variable's path and its tensors (one layer's) to the array in our layout.
        ignore: whether a tensor of no variable may be left out, by its name and value.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; all are listed.
    """
    tensors = open_tensors(path)
    faults, used = [], set()

    def read(key_path: tuple, leaf: Any) -> Any:
        variable = variable_path(key_path)
        names, stacked = layers_of(rename(variable), leaf)
        layers = []
        for layer in names:
            used.update(layer)
            try:
                layers.append(_array(tensors, layer, convert, variable, leaf.shape[stacked:]))
            except ValueError as error:
                faults.append(str(error))
        return None if faults else _placed(layers, leaf, stacked)

    variables = jax.tree.map_with_path(read, expected)
    extra = sorted(name for name in tensors.keys() - used if not ignore(name, tensors[name]))
    faults += [f"extra: {name} {tensors[name].shape}" for name in extra]
    if faults:
        listed = "\n".join(faults)
        raise ValueError(f"{path} does not hold the variables of this module:\n{listed}")
    return variables


def _array(
    tensors: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    convert: Callable[..., np.ndarray],
    variable: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return a variable, or a layer of it, converted from its tensors.

    Raises:
        ValueError: tensors are missing, misshapen or unusable.
    """
    target = f"for {variable} {shape}"
    if missing := [f"missing: {name}, {target}" for name in names if name not in tensors]:
        raise ValueError("\n".join(missing))
    found = [tensors[name] for name in names]
    source = f"{names[0]} {found[0].shape}{f' and {len(names) - 1} more' * (len(names) > 1)}"
    try:
        array = convert(variable, *found)
    except ValueError as error:  # such as a transposition of another number of dimensions
        raise ValueError(f"unusable: {source}, {target}: {error}") from error
    if array.shape != shape:
        raise ValueError(f"misshapen: {source} gives {array.shape}, {target}")
    return array


def _placed(layers: list[np.ndarray], leaf: jax.ShapeDtypeStruct, stacked: bool) -> Any:
    """Return a variable from its layers, on the devices that `leaf` says."""

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


def save_variables(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    variables: Any,
    rename: Callable[[str], Names],
    invert: Callable[[str, np.ndarray], Any] = to_torch,
    *,
    name: str = NAMES[0],
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write what `load_variables` reads, in the files that diffusers and transformers write.

    They are `config.json` and `name`.safetensors, or several files and their index where one would
    be larger than `shard_bytes`.

    Args:
        rename: as `load_variables` takes it.
        invert: the inverse of its `convert`; a tuple of tensors where there is a tuple of names.
        name: "diffusion_pytorch_model" for diffusers, "model" for transformers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, size = [{}], 0  # of each file: names of tensors to what they are made of
    for key_path, leaf in jax.tree.leaves_with_path(variables):
        variable = variable_path(key_path)
        layers, stacked = layers_of(rename(variable), leaf)
        nbytes = leaf.nbytes // len(layers)
        for i, names in enumerate(layers):
            if files[-1] and size + nbytes > shard_bytes:
                files, size = [*files, {}], 0
            files[-1][names] = variable, leaf, i if stacked else ...
            size += nbytes
    of = "-{:05}-of-{:05}" if len(files) > 1 else ""
    weight_map, total = {}, 0
    for number, sources in enumerate(files, 1):
        file, arrays = f"{name}{of.format(number, len(files))}.safetensors", {}
        for names, (variable, leaf, layer) in sources.items():
            made = invert(variable, np.asarray(leaf[layer]))
            made = made if isinstance(made, tuple) else (made,)
            arrays |= {n: np.asarray(a, order="C") for n, a in zip(names, made, strict=True)}
        save_file(arrays, folder / file, metadata=dict(format="pt"))
        weight_map |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    if of:
        index = dict(metadata=dict(total_size=total), weight_map=weight_map)
        path = folder / f"{name}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
