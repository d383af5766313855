"""Low-rank adapters of kernels (Hu et al. 2021, "LoRA"), also from files of diffusers and PEFT."""

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.devices.mesh import variable_path
from genjax.pretrained.configuration import parse_json
from genjax.pretrained.published import record_of
from genjax.pretrained.safetensors_io import first_of, open_metadata, open_tensors
from genjax.pretrained.variables import is_finite, layers_of

_PREFIX = re.compile(r"^(base_model\.model\.|transformer\.)?")
# From a kernel's path to its adapter: "down" `[… inputs rank]` times "up" `[… rank outputs]` is
# added to the kernel. A stack of kernels has stacked adapters.
Adapters = dict[str, dict[str, Any]]
_SETTINGS = "lora_adapter_metadata"  # PEFT's settings in the header of diffusers' files


def init_lora(
    key: Key[Array, ""], variables: Any, rank: int, select: Callable[[str], bool]
) -> Adapters:
    """Return initial adapters, which change nothing (Hu et al. 2021, section 4.1).

    `down` is normal with standard deviation 1/√inputs, and `up` is zero. Train only the adapters:

        jax.grad(lambda adapters: loss(apply_lora(variables, adapters)))(adapters)

    Args:
        select: whether a kernel gets an adapter, by its path, such as
            "params/single_blocks/heads/query/kernel".

    Raises:
        ValueError: no kernel is selected, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a rank is 1 or more; got {rank}, which adapts nothing")
    kernels = _kernels(variables)
    selected = {path: kernel for path, kernel in kernels.items() if select(path)}
    if not selected:
        raise ValueError(f"no kernel is selected; there are {', '.join(kernels)}")
    adapters, keys = {}, jax.random.split(key, len(selected))
    for (path, kernel), key in zip(selected.items(), keys, strict=True):
        *layers, inputs, outputs = kernel.shape
        down = jax.random.normal(key, (*layers, inputs, rank)) / np.sqrt(inputs)
        adapters[path] = dict(down=down, up=jnp.zeros((*layers, rank, outputs)))
    return adapters


def _kernels(variables: Any) -> dict[str, Any]:
    leaves = {variable_path(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    return {path: leaf for path, leaf in leaves.items() if path.endswith("/kernel")}


def apply_lora(variables: Any, adapters: Adapters, scale: float | Float[Array, ""] = 1.0) -> Any:
    """Return the variables with kernel + scale·down·up for every kernel that has an adapter.

    The product is computed in float32, and the sum has the kernel's type. Compute it once for
    sampling, and in every step of training.

    Raises:
        ValueError: an adapter belongs to no variable.
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

    diffusers writes such a file by `save_lora_weights`, PEFT by `save_pretrained`. Layers of a
    stack that the file does not adapt get zeros. If the layers of a stack have different ranks,
    zeros fill the smaller ones, which changes no product.

    Args:
        module: a network with a published form, whose record names its tensors.
        alpha: adapters are scaled by alpha/rank if neither an entry ".alpha" nor diffusers' header
            gives alpha. PEFT keeps alpha in a separate file, `adapter_config.json`. Without alpha
            the scale is 1.

    Raises:
        ValueError: tensors belong to no kernel, have no partner or a wrong shape, two factors have
            different ranks, or numbers are not finite (the first 20 are listed); or the file has
            settings other than a rank and an alpha.
    """
    record, scaling = record_of(module), _header_scaling(path)
    rename = record.names(module, ())
    tensors = {_PREFIX.sub("", name): tensor for name, tensor in open_tensors(path).items()}
    adapters, faults, used = {}, [], set()
    for variable, kernel in _kernels(variables).items():
        # A conversion may reorder or select inputs and outputs, and the factors must follow.
        convert, pairs = functools.partial(record.convert, module, variable), {}
        layers, stacked = layers_of(rename(variable), kernel)
        for i, (name, *parts) in enumerate(layers):
            layer = name.removesuffix(".weight")
            factors = {f"{layer}.lora_{factor}.weight" for factor in "AB"}
            if parts or not factors <= tensors.keys():
                continue  # files have no adapters for a kernel that consists of several tensors
            used |= {*factors, f"{layer}.alpha"}
            if fault := _fault(tensors, layer):
                faults.append(fault)
                continue
            down, up = _converted(_factors(tensors, layer, scaling, alpha), convert)
            shape, pairs[i] = (len(down), up.shape[1]), (down, up)
            if shape != kernel.shape[-2:]:
                inputs, outputs = kernel.shape[-2:]
                sizes = f"from {shape[0]} to {shape[1]}, kernel {inputs}×{outputs}"
                faults.append(f"misshapen: {name} adapted {sizes}")
        if pairs and not faults:
            adapters[variable] = _stack(pairs, len(layers), stacked)
    extra = sorted(tensors.keys() - used)
    faults += [f"of no kernel here: {name} {tensors[name].shape}" for name in extra]
    if faults:
        raise ValueError(f"{path} does not hold adapters of these variables:\n{first_of(faults)}")
    return adapters


def _fault(tensors: Mapping[str, np.ndarray], layer: str) -> str | None:
    """Return what is wrong with the factors of a layer, or None."""
    names = [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha"]
    found = {name: tensors[name] for name in names if name in tensors}
    a, b, *alpha = found.values()
    if a.ndim != 2 or b.ndim != 2 or any(array.size != 1 for array in alpha):
        return f"misshapen: {names[0]} {a.shape} and lora_B {b.shape}; expected two matrices"
    if len(a) != b.shape[1] or not len(a):
        return f"ranks differ: {names[0]} has {len(a)}, and lora_B {b.shape[1]}"
    infinite = [name for name, array in found.items() if not is_finite(array)]
    return f"not finite: {', '.join(infinite)}" if infinite else None


def _factors(
    tensors: Mapping[str, np.ndarray], layer: str, scaling: float | None, alpha: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return [inputs rank] and [rank outputs] of a layer, scaled."""
    a, b = (np.asarray(tensors[f"{layer}.lora_{factor}.weight"], np.float32) for factor in "AB")
    if f"{layer}.alpha" in tensors:
        scaling = float(tensors[f"{layer}.alpha"]) / len(a)
    if scaling is None:
        scaling = 1.0 if alpha is None else alpha / len(a)
    return a.T, b.T * scaling


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
    """Return the factors of the converted kernel, unchanged if no kernel of this size converts."""
    down, up = factors
    shape = up.shape[1], len(down)
    try:
        order = convert(np.broadcast_to(np.arange(shape[1]), shape))[:, 0]
        out_order = convert(np.broadcast_to(np.arange(shape[0])[:, None], shape))[0]
    except ValueError:
        return factors
    return down[order], up[:, out_order]


def _header_scaling(path: str | os.PathLike) -> float | None:
    """Return alpha/rank if a file has PEFT's settings in its header, else None.

    Raises:
        ValueError: the header has other settings that matter.
    """
    if os.path.isdir(path):
        return None
    settings = parse_json(open_metadata(path).get(_SETTINGS, "{}"), f"{_SETTINGS} of {path}")
    settings = {_PREFIX.sub("", name): value for name, value in settings.items()}
    if not settings:
        return None
    names = ("use_rslora", "use_dora", "lora_bias", "alpha_pattern", "rank_pattern")
    if unsupported := {name: settings[name] for name in names if settings.get(name)}:
        raise ValueError(f"{path} has settings that are not supported: {unsupported}")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not all(isinstance(value, int | float) and value > 0 for value in (rank, alpha)):
        raise ValueError(
            f"{path} has settings r={rank} and lora_alpha={alpha}: give numbers above 0"
        )
    return alpha / rank
