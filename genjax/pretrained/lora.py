"""Low-rank adaptation (Hu et al. 2021, "LoRA"): adapters of kernels, made, applied, and read from the files
of diffusers and PEFT."""

import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import EinopsError
from jaxtyping import Array, Float, Key
from safetensors import safe_open

from genjax.pretrained.safetensors_io import from_torch, open_tensors, variable_path

_PREFIX = re.compile(r"^(base_model\.model\.|transformer\.)?")
# From a kernel's path to what is added to it: "down" `[… inputs rank]` times "up" `[… rank outputs]`, stacked
# as it is.
Adapters = dict[str, dict[str, Any]]
_SETTINGS = "lora_adapter_metadata"  # where diffusers keeps PEFT's in a file's header


def init_lora(key: Key[Array, ""], variables: Any, rank: int, select: Callable[[str], bool]) -> Adapters:
    """Adapters that change nothing yet: `down` is normal with deviation 1/√inputs, `up` zero.

    Hu et al. 2021, section 4.1. They are all that is to be trained:

        jax.grad(lambda adapters: loss(apply_lora(variables, adapters)))(adapters)

    Args:
        select: which kernels get one, by their paths, "params/single_blocks/heads/query/kernel".

    Raises:
        ValueError: no kernel is selected.
    """
    paths = {variable_path(key_path): leaf for key_path, leaf in jax.tree.leaves_with_path(variables)}
    kernels = {path: leaf for path, leaf in paths.items() if path.endswith("/kernel") and select(path)}
    if not kernels:
        there = ", ".join(path for path in paths if path.endswith("/kernel"))
        raise ValueError(f"no kernel is selected; there are {there}")
    adapters = {}
    for (path, kernel), key_of_one in zip(kernels.items(), jax.random.split(key, len(kernels)), strict=True):
        *layers, inputs, outputs = kernel.shape
        down = jax.random.normal(key_of_one, (*layers, inputs, rank)) / np.sqrt(inputs)
        adapters[path] = dict(down=down, up=jnp.zeros((*layers, rank, outputs)))
    return adapters


def apply_lora(variables: Any, adapters: Adapters, scale: float | Float[Array, ""] = 1.0) -> Any:
    """The variables with kernel + scale·down·up for every kernel that has an adapter, in the kernel's type.

    The product is one of float32: for use it is made once, in training it is made anew in every step.

    Raises:
        ValueError: an adapter is of no variable here.
    """
    unused = set(adapters)

    def adapt(key_path: tuple, leaf: Any) -> Any:
        path = variable_path(key_path)
        if path not in adapters:
            return leaf
        unused.remove(path)
        down, up = (jnp.asarray(adapters[path][name], jnp.float32) for name in ("down", "up"))
        return (leaf + scale * jnp.matmul(down, up, precision="highest")).astype(leaf.dtype)

    adapted = jax.tree.map_with_path(adapt, variables)
    if unused:
        raise ValueError(f"there are no variables of these adapters: {', '.join(sorted(unused))}")
    return adapted


def load_lora(
    path: str | os.PathLike,
    variables: Any,
    rename: Callable[[str], str | Sequence[str]],
    convert: Callable[[str, np.ndarray], np.ndarray] = from_torch,
    alpha: float | None = None,
) -> Adapters:
    """A transformer's adapters from a safetensors file of diffusers' `save_lora_weights` or PEFT's
    `save_pretrained`.

    Layers of a stack that the file does not adapt get zeros; where ranks differ in a stack, those below the
    largest are filled up with zeros.

    Args:
        rename, convert: as those of `load_variables`, such as `genjax.pretrained.flux.rename` and `.convert`.
        alpha: adapters are scaled by alpha/rank where neither an entry ".alpha" nor diffusers' header says
            what alpha is (PEFT keeps it in a file of its own, `adapter_config.json`); by 1 if None.

    Raises:
        ValueError: tensors that are of none of the variables' kernels, without partners or of a wrong shape,
            all listed; or settings other than a rank and an alpha.
    """
    tensors = {_PREFIX.sub("", name): tensor for name, tensor in open_tensors(path).items()}
    scaling, used = _header_scaling(path), set()

    def factors(layer: str) -> tuple[np.ndarray, np.ndarray] | None:
        """[inputs rank] and [rank outputs] of a layer, if it has them, scaled."""
        names = [f"{layer}.lora_{factor}.weight" for factor in "AB"]
        if not all(name in tensors for name in names):
            return None
        used.update(names, [f"{layer}.alpha"])
        a, b = (np.asarray(tensors[name], np.float32) for name in names)
        rank, own_alpha = len(a), tensors.get(f"{layer}.alpha")
        if own_alpha is not None:
            return a.T, b.T * (float(own_alpha) / rank)
        return a.T, b.T * (scaling or (1.0 if alpha is None else alpha / rank))

    adapters, faults = {}, []
    for key_path, kernel in jax.tree.leaves_with_path(variables):
        variable = variable_path(key_path)
        if not variable.endswith("/kernel"):
            continue
        *layers, inputs, outputs = kernel.shape
        names = rename(variable)
        if isinstance(names, str):
            names = [names.format(layer) for layer in range(layers[0])] if layers else [names]
        found = {i: factors(name.removesuffix(".weight")) for i, name in enumerate(names)}
        # A conversion may reorder inputs and outputs, or take a part: where do the numbers of each go?
        found = {
            i: _converted(pair, functools.partial(convert, variable)) for i, pair in found.items() if pair
        }
        wrong = [i for i, (down, up) in found.items() if (len(down), up.shape[1]) != (inputs, outputs)]
        faults += [
            f"misshapen: {names[i]} adapted from {len(found[i][0])} to {found[i][1].shape[1]}, "
            f"kernel {inputs}×{outputs}"
            for i in wrong
        ]
        if not found or wrong:
            continue
        rank = max(up.shape[0] for _, up in found.values())
        down = np.zeros((len(names), inputs, rank), np.float32)
        up = np.zeros((len(names), rank, outputs), np.float32)
        for i, (a, b) in found.items():
            down[i, :, : a.shape[1]], up[i, : len(b)] = a, b
        first = slice(None) if layers else 0
        adapters[variable] = dict(down=down[first], up=up[first])
    faults += [f"of no kernel here: {name} {tensors[name].shape}" for name in sorted(tensors.keys() - used)]
    if faults:
        raise ValueError(f"{path} does not hold adapters of these variables:\n" + "\n".join(faults))
    return adapters


def _converted(
    factors: tuple[np.ndarray, np.ndarray], convert: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What is to `factors` as the converted kernel is to theirs; they themselves if no kernel of their size converts."""
    down, up = factors
    shape = up.shape[1], len(down)
    try:
        order = convert(np.broadcast_to(np.arange(shape[1]), shape))[:, 0]
        out_order = convert(np.broadcast_to(np.arange(shape[0])[:, None], shape))[0]
    except (ValueError, EinopsError):
        return factors
    return down[order], up[:, out_order]


def _header_scaling(path: str | os.PathLike) -> float | None:
    """alpha/rank, where a file has PEFT's settings in its header.

    Raises:
        ValueError: other settings matter.
    """
    if os.path.isdir(path):
        return None
    with safe_open(path, "numpy") as file:
        settings = json.loads((file.metadata() or {}).get(_SETTINGS, "{}"))
    settings = {_PREFIX.sub("", name): value for name, value in settings.items()}
    if not settings:
        return None
    unsupported = ("use_rslora", "use_dora", "lora_bias", "alpha_pattern", "rank_pattern")
    unsupported = {name: settings[name] for name in unsupported if settings.get(name)}
    if unsupported:
        raise ValueError(f"{path} has settings that are not supported: {unsupported}")
    return settings["lora_alpha"] / settings["r"]
