"""From a safetensors file to the variables of a Flax module."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file


def load_variables(
    path: str | os.PathLike,
    expected: Any,
    rename: Callable[[str], str],
    convert: Callable[[str, np.ndarray], np.ndarray] = lambda variable, array: array,
    ignore: Callable[[str, np.ndarray], bool] = lambda tensor, array: False,
) -> Any:
    """The tensors of a safetensors file in the structure, shapes and types of `expected`.

    Args:
        expected: pytree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(module.init, …)` returns it.
        rename: from a variable's path, "params/block/dense/kernel", to the name of its tensor.
        convert: from a variable's path and its tensor to the array in our layout.
        ignore: whether a tensor that no variable asked for, given its name and value, may be left out.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    tensors = load_file(path)
    leaves, structure = jax.tree.flatten_with_path(expected)
    arrays, faults, used = [], [], set()
    for key_path, leaf in leaves:
        variable = jax.tree_util.keystr(key_path, simple=True, separator="/")
        name = rename(variable)
        used.add(name)
        if name not in tensors:
            faults.append(f"missing: {name}, for {variable} {leaf.shape}")
            continue
        tensor = tensors[name]
        try:
            array = convert(variable, tensor)
        except ValueError as error:  # such as a transposition of another number of dimensions
            faults.append(f"misshapen: {name} {tensor.shape}, for {variable} {leaf.shape}: {error}")
            continue
        if array.shape != leaf.shape:
            faults.append(
                f"misshapen: {name} {tensor.shape} gives {array.shape}, for {variable} {leaf.shape}"
            )
        arrays.append(array.astype(leaf.dtype))
    extra = sorted(name for name in tensors.keys() - used if not ignore(name, tensors[name]))
    faults += [f"extra: {name} {tensors[name].shape}" for name in extra]
    if faults:
        raise ValueError(f"{path} does not hold the variables of this module:\n" + "\n".join(faults))
    return jax.tree.unflatten(structure, arrays)
