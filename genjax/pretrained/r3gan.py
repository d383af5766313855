"""R3GAN's weights as its authors' repository writes them (Huang et al. 2024).

A file holds the state dict of `training.networks.Generator` or `Discriminator`, in safetensors.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from genjax.models.gans.r3gan import Discriminator, Generator
from genjax.pretrained.published import example
from genjax.pretrained.stylegan2 import is_filter
from genjax.pretrained.variables import load_variables

# Names within a residual block. Published biases belong to activations.
_BLOCK = {
    "expand/kernel": "LinearLayer1.Layer.weight",
    "expand/bias": "NonLinearity1.Bias",
    "grouped/kernel": "LinearLayer2.Layer.weight",
    "grouped/bias": "NonLinearity2.Bias",
    "contract/kernel": "LinearLayer3.Layer.weight",
}


def _layer(stage: int, i: int) -> str:
    return f"Model.MainLayers.{stage}.Layers.{i}"


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the array of a channel-first kernel or basis."""
    if variable == "params/basis":
        return np.moveaxis(tensor.reshape(-1, 4, 4), 0, -1)
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _load(path: str | os.PathLike, module: Any, names: dict[str, str], inputs: Array) -> Any:
    """Read the variables of a module by the published names of its layers and blocks."""

    def rename(variable: str) -> str:
        layer, _, rest = variable.removeprefix("params/").partition("/")
        return f"{names[layer]}.{_BLOCK[rest]}" if layer.startswith("block") else names[layer]

    labels = example(dtype=jnp.int32) if module.num_classes else None
    expected = jax.eval_shape(module.init, jax.random.key(0), inputs, labels)
    return load_variables(path, expected, rename, _convert, is_filter)


def load_generator(path: str | os.PathLike, module: Generator) -> Any:
    """Read the variables of `module` from the state dict of a generator.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    names = {
        "label_embedding": "Model.EmbeddingLayer.weight",
        "basis": f"{_layer(0, 0)}.Basis",
        "basis_scale": f"{_layer(0, 0)}.LinearLayer.weight",
        "to_image": "Model.AggregationLayer.Layer.weight",
    }
    for stage, blocks in enumerate(module.blocks):  # layer 0 starts the stage
        names[f"width_{stage}"] = f"{_layer(stage, 0)}.LinearLayer.Layer.weight"
        names |= {f"block_{stage}_{i}": _layer(stage, i + 1) for i in range(blocks)}
    return _load(path, module, names, example(module.latent_size))


def load_discriminator(
    path: str | os.PathLike, module: Discriminator, image_channels: int = 3
) -> Any:
    """Read the variables of `module` from the state dict of a discriminator.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    last = _layer(len(module.blocks) - 1, module.blocks[-1])
    names = {
        "label_embedding": "Model.EmbeddingLayer.weight",
        "width_0": "Model.ExtractionLayer.Layer.weight",
        "basis": f"{last}.Basis.weight",
        "head": f"{last}.LinearLayer.weight",
    }
    for stage, blocks in enumerate(module.blocks):  # the layer after the blocks ends the stage
        names[f"width_{stage + 1}"] = f"{_layer(stage, blocks)}.LinearLayer.Layer.weight"
        names |= {f"block_{stage}_{i}": _layer(stage, i) for i in range(blocks)}
    side = 4 * 2 ** (len(module.blocks) - 1)
    return _load(path, module, names, example(side, side, image_channels))
