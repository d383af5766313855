"""Any folder of weights that diffusers or transformers wrote, and back."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Sharding

# Which module here reads a class of diffusers or an architecture of transformers.
_READERS = {
    "AutoencoderDC": "autoencoder_dc",
    "AutoencoderKL": "autoencoder_kl",
    "AutoencoderKLWan": "autoencoder_wan",
    "AutoencoderTiny": "autoencoder_tiny",
    "VQModel": "vqgan",
    "DiTTransformer2DModel": "dit",
    "FluxTransformer2DModel": "flux",
    "PixArtTransformer2DModel": "pixart",
    "SD3Transformer2DModel": "sd3",
    "BertModel": "bert",
    "CLIPModel": "clip",
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "CLIPVisionModel": "clip",
    "CLIPVisionModelWithProjection": "clip",
    "Dinov2Model": "dinov2",
    "Dinov2WithRegistersModel": "dinov2",
    **{
        f"{family}{kind}": "t5"
        for family in ("T5", "UMT5")
        for kind in ("EncoderModel", "Model", "ForConditionalGeneration")
    },
}
_OF_OLD = {"ada_norm_zero": "dit", "ada_norm_single": "pixart"}  # when both were `Transformer2DModel`


def load(
    folder: str | os.PathLike,
    *,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
) -> tuple[nn.Module, Any]:
    """The module and its variables from a folder with `config.json` and safetensors, one file or several.

        module, variables = load("stable-diffusion-3/transformer", param_dtype=jnp.bfloat16)

    Tensors are read one after the other, of each the parts that this process' devices hold, so that beside the variables
    themselves the host needs memory for about one of them.

    Args:
        param_dtype: of the variables that are floating-point numbers; float32, as the modules' own, if None. In what type
            the module computes is for its `dtype`: `module.clone(dtype=jnp.bfloat16)`.
        sharding: from a variable's path, "params/blocks/mlp_in/kernel", and its shape to where it lies, such as
            `genjax.devices.mesh.variable_sharding(mesh)`. Without one, variables are NumPy arrays.

    Raises:
        FileNotFoundError: no configuration or no safetensors; files in other formats are not read.
        ValueError: an architecture or an entry of the configuration that is not supported, by name; or one that lists all
            missing, extra and misshapen tensors.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        parts = [part.name for part in sorted(Path(folder).glob("*")) if (part / "config.json").exists()]
        raise FileNotFoundError(
            f"{path} does not exist" + (f"; load one of the parts {', '.join(parts)}" if parts else "")
        )
    config = json.loads(path.read_text())
    name = config.get("_class_name") or (config.get("architectures") or [None])[0]
    reader = _OF_OLD.get(config.get("norm_type")) if name == "Transformer2DModel" else _READERS.get(name)
    if reader is None:
        raise ValueError(f"{path} describes {name!r}; known are {', '.join(_READERS)}")

    def abstract(expected: Any) -> Any:
        def leaf(key_path: tuple, a: Any) -> jax.ShapeDtypeStruct:
            variable = jax.tree_util.keystr(key_path, simple=True, separator="/")
            floating = param_dtype is not None and jnp.issubdtype(a.dtype, jnp.floating)
            placed = sharding(variable, a.shape) if sharding else None
            return jax.ShapeDtypeStruct(a.shape, param_dtype if floating else a.dtype, sharding=placed)

        return jax.tree.map_with_path(leaf, expected)

    return _module(reader).load(folder, abstract)


def save(folder: str | os.PathLike, module: nn.Module, variables: Any) -> None:
    """Writes what `load` reads, and `from_pretrained` of the library that has this architecture.

    Raises:
        ValueError: no library has it, or the module has a field that it cannot say.
    """
    name = type(module).__module__.rpartition(".")[2]
    name = {"mmdit": "sd3"}.get(name, name)
    if name not in _READERS.values() or not hasattr(_module(name), "save"):
        raise ValueError(f"there is no published form of {type(module).__name__} to save it in")
    _module(name).save(folder, module, variables)


def _module(name: str) -> Any:
    return importlib.import_module(f"genjax.pretrained.{name}")
