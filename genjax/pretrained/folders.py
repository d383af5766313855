"""Load and save folders of weights as diffusers and transformers write them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import PyTree

from genjax.devices.mesh import variable_path
from genjax.pretrained.configuration import read_json
from genjax.pretrained.published import class_of, record_of, records


def load(
    folder: str | os.PathLike,
    *,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
) -> tuple[nn.Module, PyTree]:
    """Read a module and its variables from a folder with `config.json` and safetensors.

        module, variables = load("stable-diffusion-3/transformer", param_dtype=jnp.bfloat16)

    Tensors are read one after the other, and only the parts that this process's devices hold. So
    the host needs memory for about one tensor beside the variables.

    Args:
        param_dtype: type of the floating-point variables; float32, the modules' default, if None.
            The type of the computation is the module's `dtype`: `module.clone(dtype=jnp.bfloat16)`.
        sharding: from a variable's path, "params/blocks/mlp_in/kernel", and its shape to its
            sharding, such as `genjax.devices.variable_sharding(mesh)`. Without it, variables
            are NumPy arrays.

    Raises:
        FileNotFoundError: there is no such folder, or it has no configuration or no safetensors.
            Other formats are not read.
        ValueError: the class or an entry of the configuration is unknown or not supported; tensors
            are missing, extra, misshapen or unusable (the first 20 are listed); a tensor holds NaN
            or infinity; or a file is damaged.
    """
    path = Path(folder) / "config.json"
    check_fetched(folder)
    if not path.exists():
        parts = [part.parent.name for part in sorted(Path(folder).glob("*/config.json"))]
        advice = f"; load one of the parts {', '.join(parts)}" if parts else ""
        raise FileNotFoundError(f"{path} does not exist{advice}")
    config = read_json(path)
    record = next((record for record in records() if record.describes(config)), None)
    if record is None and "config" in config:
        raise ValueError(f"{folder} is a run: open it by genjax.pipelines.Run({str(folder)!r})")
    if record is None:
        known = ", ".join(record.name for record in records())
        raise ValueError(f"{path} describes {class_of(config)!r}; known are {known}")

    def wanted(key_path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        floating = param_dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        placed = sharding(variable_path(key_path), leaf.shape) if sharding else None
        dtype = param_dtype if floating else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=placed)

    return record.load(folder, lambda shapes: jax.tree.map_with_path(wanted, shapes))


def check_fetched(folder: str | os.PathLike) -> None:
    """Raise FileNotFoundError if there is no such folder, as for the name of a folder to fetch."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}, and genjax fetches nothing itself: "
            "docs/guides/published_weights.md has the commands that do"
        )


def save(folder: str | os.PathLike, module: nn.Module, variables: PyTree, **entries: Any) -> None:
    """Write a module and its variables as its library publishes them.

    `load` reads the folder, and so does the library's `from_pretrained`.

    Args:
        entries: entries of the configuration that replace those derived from the module, such as
            `sample_size`, the default side of latents in diffusers' pipelines.

    Raises:
        ValueError: no library publishes such a module, or its class cannot express a field's value.
    """
    record_of(module).save(folder, module, variables, **entries)
