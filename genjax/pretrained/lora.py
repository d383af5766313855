"""Low-rank adaptation (Hu et al. 2021, "LoRA"): adapters of kernels, made, applied, and read from the files
of diffusers and PEFT."""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from safetensors import safe_open

from genjax.pretrained.published import record_of
from genjax.pretrained.safetensors_io import layers_of, open_tensors, variable_path

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
    path: str | os.PathLike, module: nn.Module, variables: Any, alpha: float | None = None
) -> Adapters:
    """Read a network's adapters from a safetensors file of diffusers or PEFT.

    diffusers writes it by `save_lora_weights`, PEFT by `save_pretrained`. Layers of a stack that the
    file does not adapt get zeros. Where ranks differ in a stack, zeros fill up those below the
    largest.

    Args:
        module: a network with a published form, whose record names its tensors.
        alpha: adapters are scaled by alpha/rank where neither an entry ".alpha" nor diffusers'
            header gives alpha (PEFT keeps it in a file of its own, `adapter_config.json`). Without
            it they are scaled by 1.

    Raises:
        ValueError: tensors belong to no kernel, have no partner or a wrong shape, and all are
            listed; or settings other than a rank and an alpha.
    """
    record = record_of(module)
    rename = record.names(module, ())
    tensors = {_PREFIX.sub("", name): tensor for name, tensor in open_tensors(path).items()}
    scaling = _header_scaling(path)
    adapters, faults, used = {}, [], set()
    for key_path, kernel in jax.tree.leaves_with_path(variables):
        variable = variable_path(key_path)
        if not variable.endswith("/kernel"):
            continue
        names, stacked = layers_of(rename(variable), kernel)
        pairs = {}
        for i, name in enumerate(names):
            layer = name[0].removesuffix(".weight")
            if len(name) > 1 or not {f"{layer}.lora_{factor}.weight" for factor in "AB"} <= tensors.keys():
                continue  # a kernel that several tensors make has no adapters in files
            used.update(f"{layer}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha"))
            pair = _factors(tensors, layer, scaling, alpha)
            # A conversion may reorder inputs and outputs, or take a part: so must the factors.
            down, up = _converted(pair, functools.partial(record.convert, module, variable))
            if (len(down), up.shape[1]) == kernel.shape[-2:]:
                pairs[i] = down, up
            else:
                faults.append(
                    f"misshapen: {name[0]} adapted from {len(down)} to {up.shape[1]}, "
                    f"kernel {kernel.shape[-2]}×{kernel.shape[-1]}"
                )
        if pairs:
            adapters[variable] = _stack(pairs, len(names), stacked)
    faults += [
        f"of no kernel here: {name} {tensors[name].shape}" for name in sorted(tensors.keys() - used)
    ]
    if faults:
        raise ValueError(f"{path} does not hold adapters of these variables:\n" + "\n".join(faults))
    return adapters


def _factors(
    tensors: Mapping[str, np.ndarray], layer: str, scaling: float | None, alpha: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return [inputs rank] and [rank outputs] of a layer, scaled."""
    a, b = (np.asarray(tensors[f"{layer}.lora_{factor}.weight"], np.float32) for factor in "AB")
    if f"{layer}.alpha" in tensors:
        scaling = float(tensors[f"{layer}.alpha"]) / len(a)
    return a.T, b.T * (scaling or (1.0 if alpha is None else alpha / len(a)))


def _stack(pairs: dict[int, tuple], num_layers: int, stacked: bool) -> dict[str, np.ndarray]:
    """Return the factors of all layers, zero where a layer has none or a lower rank."""
    rank = max(len(up) for _, up in pairs.values())
    (inputs, _), (_, outputs) = (factor.shape for factor in next(iter(pairs.values())))
    down = np.zeros((num_layers, inputs, rank), np.float32)
    up = np.zeros((num_layers, rank, outputs), np.float32)
    for i, (a, b) in pairs.items():
        down[i, :, : a.shape[1]], up[i, : len(b)] = a, b
    return dict(down=down, up=up) if stacked else dict(down=down[0], up=up[0])


def _converted(
    factors: tuple[np.ndarray, np.ndarray], convert: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return factors of the converted kernel; the same, if no kernel of their size converts."""
    down, up = factors
    shape = up.shape[1], len(down)
    try:
        order = convert(np.broadcast_to(np.arange(shape[1]), shape))[:, 0]
        out_order = convert(np.broadcast_to(np.arange(shape[0])[:, None], shape))[0]
    except ValueError:
        return factors
    return down[order], up[:, out_order]


def _header_scaling(path: str | os.PathLike) -> float | None:
    """Return alpha/rank, where a file has PEFT's settings in its header.

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
    names = ("use_rslora", "use_dora", "lora_bias", "alpha_pattern", "rank_pattern")
    if unsupported := {name: settings[name] for name in names if settings.get(name)}:
        raise ValueError(f"{path} has settings that are not supported: {unsupported}")
    return settings["lora_alpha"] / settings["r"]
