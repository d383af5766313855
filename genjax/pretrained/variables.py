"""Conversion between the tensors of safetensors files and the variables of a Flax module."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from genjax.devices.mesh import variable_path
from genjax.pretrained.layouts import Names, from_torch, to_torch
from genjax.pretrained.safetensors_io import NAMES, first_of, open_tensors, replace_weights


def parameters_digest(variables: Any) -> str:
    """Return the SHA-256 of arrays with their names, types and shapes.

    It does not depend on the file that the arrays were read from.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{variable_path(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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


class _Source(NamedTuple):
    """A variable and its tensors, listed by layer if the variable is a stack."""

    variable: str
    leaf: jax.ShapeDtypeStruct
    layers: list[tuple[str, ...]]
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a layer."""
        return self.leaf.shape[self.stacked :]

    def describe(self, found: list[np.ndarray], names: tuple[str, ...]) -> str:
        """Return a layer's tensors as an error names them."""
        return f"{names[0]} {found[0].shape}{f' and {len(names) - 1} more' * (len(names) > 1)}"


def load_variables(
    path: str | os.PathLike,
    expected: Any,
    rename: Callable[[str], Names],
    convert: Callable[..., np.ndarray] = from_torch,
    ignore: Callable[[str, np.ndarray], bool] = lambda name, tensor: False,
    prefer: str | None = None,
) -> Any:
    """Read a safetensors file or folder into the structure, shapes and types of `expected`.

    The headers alone suffice to check names, types and shapes before any tensor is read. Then
    tensors are read one by one. If leaves of `expected` have a sharding, the results are arrays on
    those devices, and each process reads only its own parts. Otherwise they are NumPy arrays.

    Args:
        expected: pytree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(module.init, …)` returns it.
        rename: from a variable's path, "params/block/dense/kernel", to the name of its tensor.
            With "{}" in the name the variable is a stack of layers, counted from 0, and each
            layer has a tensor. A list names the layers one by one. A tuple names several
            tensors, all of which `convert` takes.
        convert: from a variable's path and its tensors (one layer's) to the array in our layout.
            The array's shape must depend on the tensors' shapes only: `convert` is also called with
            zeros.
        ignore: whether a tensor that belongs to no variable may be left out, by its name and value.
        prefer: as for `open_tensors`.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable (the first 20 are listed); or
            a tensor holds NaN or infinity.
    """
    tensors = open_tensors(path, prefer)
    leaves, structure = jax.tree.flatten_with_path(expected)
    paths = [variable_path(key_path) for key_path, _ in leaves]
    sources = [
        _Source(variable, leaf, *layers_of(rename(variable), leaf))
        for variable, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    faults = [fault for source in sources for fault in _faults(tensors, source, convert)]
    used = {name for source in sources for layer in source.layers for name in layer}
    extra = sorted(name for name in tensors.keys() - used if not ignore(name, tensors[name]))
    if faults := faults + [f"extra: {name} {tensors[name].shape}" for name in extra]:
        raise ValueError(f"{path} does not hold the variables of this module:\n{first_of(faults)}")
    return structure.unflatten([_read(path, tensors, source, convert) for source in sources])


def _faults(
    tensors: Mapping[str, np.ndarray], source: _Source, convert: Callable[..., np.ndarray]
) -> list[str]:
    """Return why a variable cannot be made of its tensors, judging by names, types and shapes."""
    target = f"for {source.variable} {source.shape}"

    @functools.cache
    def converted(*shapes: tuple[int, ...]) -> tuple[int, ...]:
        zeros = (np.broadcast_to(np.uint8(0), shape) for shape in shapes)
        return convert(source.variable, *zeros).shape

    faults = []
    for names in source.layers:
        if missing := [f"missing: {name}, {target}" for name in names if name not in tensors]:
            faults += missing
            continue
        found = [tensors[name] for name in names]
        text = source.describe(found, names)
        try:
            shape = converted(*(tensor.shape for tensor in found))
        except ValueError as error:  # such as a transposition with another number of dimensions
            faults.append(f"unusable: {text}, {target}: {error}")
            continue
        if shape != source.shape:
            faults.append(f"misshapen: {text} gives {shape}, {target}")
        floating = jnp.issubdtype(source.leaf.dtype, jnp.floating)
        if any(jnp.issubdtype(tensor.dtype, jnp.floating) != floating for tensor in found):
            types = f"{found[0].dtype}, {target}, which is {source.leaf.dtype}"
            faults.append(f"unusable: {text} is {types}")
    return faults


def _read(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    source: _Source,
    convert: Callable[..., np.ndarray],
) -> Any:
    """Return a variable, on the devices of its leaf's sharding.

    Raises:
        ValueError: values are unusable, such as copies that differ, or not finite.
    """
    leaf, layers = source.leaf, []
    for names in source.layers:
        found = [tensors[name] for name in names]
        try:
            layers.append(convert(source.variable, *found))
        except ValueError as error:
            fault = f"{source.describe(found, names)}, for {source.variable}: {error}"
            raise ValueError(f"{path} has values that are unusable: {fault}") from error

    def part(index: tuple[slice, ...]) -> np.ndarray:
        numbers = range(len(layers))[index[0]] if source.stacked else range(1)
        index = (*index[source.stacked :], ...)
        out = _empty(len(numbers), layers[0][index], leaf.dtype)
        for row, number in enumerate(numbers):
            with np.errstate(over="ignore"):  # the number becomes infinite and is refused below
                out[row, ...] = layers[number][index]
            if not is_finite(out[row, ...]):
                name = " or ".join(source.layers[number])
                raise ValueError(f"{path} has NaN or infinity in {name}, read as {leaf.dtype}")
        return out if source.stacked else out[0, ...]

    if leaf.sharding is None:
        return part((slice(None),) * len(leaf.shape))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _empty(count: int, layer: np.ndarray, dtype: Any) -> np.ndarray:
    """Return a stack of `count` layers to fill, with the memory order of one layer's axes.

    So reading is a plain copy, also of kernels, which are transposed in files. JAX transposes
    kernels when it puts them on devices, in a third of NumPy's time.
    """
    axes = np.argsort([-stride for stride in layer.strides], kind="stable")
    stack = np.empty((count, *(layer.shape[axis] for axis in axes)), dtype)
    return stack.transpose(0, *(1 + np.argsort(axes)))


def is_finite(array: np.ndarray) -> bool:
    """Return whether an array holds neither NaN nor infinity."""
    if not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        return True
    if array.dtype.itemsize == 2:
        # NumPy's own test takes five times as long in 16 bits. Read as integers, the bits of NaN
        # and infinity are larger than those of all finite numbers of the same sign.
        info = jnp.finfo(array.dtype)
        infinity = ((1 << info.nexp) - 1) << info.nmant
        positive, negative = (int(array.view(dtype).max()) for dtype in (np.int16, np.uint16))
        return positive < infinity and negative < infinity + 0x8000
    if array.dtype.itemsize > 2:
        # A sum needs no memory, so it takes a third of the time. The sum of finite numbers may be
        # infinite too.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(array.sum()):
                return True
    return bool(np.isfinite(array).all())


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
    """Write variables for `load_variables`, in the files of diffusers and transformers.

    The files are `config.json` and `name`.safetensors, or several files and their index if one file
    would exceed `shard_bytes`. They replace all weights in the folder once all are written.

    Args:
        rename: as for `load_variables`.
        invert: the inverse of `convert`; returns a tuple of tensors for a tuple of names.
        name: "diffusion_pytorch_model" for diffusers, "model" for transformers.
    """
    files = _split(variables, rename, shard_bytes)
    of = "-{:05}-of-{:05}" if len(files) > 1 else ""
    weight_map, total = {}, 0
    with replace_weights(folder) as unfinished:
        for number, sources in enumerate(files, 1):
            file, arrays = f"{name}{of.format(number, len(files))}.safetensors", {}
            for names, (variable, leaf, layer) in sources.items():
                made = invert(variable, np.asarray(leaf[layer]))
                made = made if isinstance(made, tuple) else (made,)
                arrays |= {n: np.asarray(a, order="C") for n, a in zip(names, made, strict=True)}
            save_file(arrays, unfinished / file, metadata=dict(format="pt"))
            weight_map |= dict.fromkeys(arrays, file)
            total += sum(array.nbytes for array in arrays.values())
        if of:
            index = dict(metadata=dict(total_size=total), weight_map=weight_map)
            path = unfinished / f"{name}.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2))
        (unfinished / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def _split(
    variables: Any, rename: Callable[[str], Names], shard_bytes: int
) -> list[dict[tuple[str, ...], tuple]]:
    """Return for each file the names of its tensors, and the variables and layers behind them."""
    files, size = [{}], 0
    for key_path, leaf in jax.tree.leaves_with_path(variables):
        variable = variable_path(key_path)
        layers, stacked = layers_of(rename(variable), leaf)
        nbytes = leaf.nbytes // len(layers)
        for i, names in enumerate(layers):
            if files[-1] and size + nbytes > shard_bytes:
                files, size = [*files, {}], 0
            files[-1][names] = variable, leaf, i if stacked else ...
            size += nbytes
    return files
