"""The weights of R3GAN (Huang et al. 2024) as its authors' repository writes them.

A file holds the state dict of `training.networks.Generator` or `Discriminator`, saved as safetensors.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.gans.r3gan import Discriminator, Generator
from genjax.nn.fir import BINOMIAL
from genjax.pretrained.safetensors_io import load_variables

# Theirs for ours within a residual block: biases belong to their activations.
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
    """Theirs are channel-first: kernels `[out, in, height, width]`, bases `[channels, height, width]`."""
    if variable == "params/basis":
        return np.moveaxis(tensor.reshape(-1, 4, 4), 0, -1)
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _ignore(name: str, tensor: np.ndarray) -> bool:
    """The filter is a constant of our modules, and any other one stays a fault."""
    taps = np.asarray(BINOMIAL) / np.sum(BINOMIAL)
    return name.endswith("Resampler.Kernel") and np.array_equal(tensor, np.outer(taps, taps))


def _load(path: str | os.PathLike, module: Any, names: dict[str, str], shape: tuple[int, ...]) -> Any:
    """`names` are theirs for our layers and blocks."""

    def rename(variable: str) -> str:
        layer, _, rest = variable.removeprefix("params/").partition("/")
        return f"{names[layer]}.{_BLOCK[rest]}" if layer.startswith("block") else names[layer]

    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if module.num_classes else None
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), example, labels)
    return load_variables(path, expected, rename, _convert, _ignore)


def load_generator(path: str | os.PathLike, module: Generator) -> Any:
    """The variables of `module` from the state dict of a generator.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    names = {
        "label_embedding": "Model.EmbeddingLayer.weight",
        "basis": f"{_layer(0, 0)}.Basis",
        "basis_scale": f"{_layer(0, 0)}.LinearLayer.weight",
        "to_image": "Model.AggregationLayer.Layer.weight",
    }
    for stage, blocks in enumerate(module.blocks):  # layer 0 begins the stage
        names[f"width_{stage}"] = f"{_layer(stage, 0)}.LinearLayer.Layer.weight"
        names |= {f"block_{stage}_{i}": _layer(stage, i + 1) for i in range(blocks)}
    return _load(path, module, names, (1, module.latent_size))


def load_discriminator(path: str | os.PathLike, module: Discriminator, image_channels: int = 3) -> Any:
    """The variables of `module` from the state dict of a discriminator.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
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
    return _load(path, module, names, (1, side, side, image_channels))
