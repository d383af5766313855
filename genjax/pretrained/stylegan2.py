"""The StyleGAN2 weights that its authors publish with stylegan2-ada-pytorch and stylegan3 (NVIDIA 2020, 2021).

A file holds the state dict of one of their PyTorch modules, `G`, `G_ema` or `D`, saved as safetensors.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.gans.stylegan2 import Discriminator, Generator
from genjax.nn.fir import BINOMIAL
from genjax.pretrained.safetensors_io import load_variables

# Theirs for ours, where the words of a path differ: patterns of whole words.
_NAMES = {
    r"block(\d+)": r"b\1",
    r"epilogue": "b4",
    r"dense(\d*)": r"fc\1",
    r"embedding": "embed",
    r"(to|from)_rgb": r"\1rgb",
    r"constant": "const",
    r"noise": "noise_const",
    r"w_average": "mapping.w_avg",
    r"kernel": "weight",
}


def _rename(variable: str) -> str:
    words = variable.split("/")[1:]  # less the collection
    for pattern, name in _NAMES.items():
        words = [re.sub(f"^{pattern}$", name, word) for word in words]
    return ".".join(words)


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Theirs are channel-first: kernels `[out, in, …]`, images `[channels, height, width]`."""
    if variable.endswith("epilogue/dense/kernel"):  # of 4×4 features, made one axis
        return tensor.reshape(len(tensor), -1, 4, 4).transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    if re.search(r"synthesis/block\d+/conv0/kernel$", variable):
        tensor = tensor[:, :, ::-1, ::-1]  # they convolve where they up-sample, and correlate elsewhere
    if variable.endswith("kernel"):
        return np.moveaxis(tensor, (1, 0), (-2, -1))
    return np.moveaxis(tensor, 0, -1) if variable.endswith("constant") else tensor


def _ignore(name: str, tensor: np.ndarray) -> bool:
    """The filter is a constant of our module, and any other one stays a fault."""
    taps = np.asarray(BINOMIAL) / np.sum(BINOMIAL)
    return name.endswith("resample_filter") and np.array_equal(tensor, np.outer(taps, taps))


def _load(path: str | os.PathLike, module: Generator | Discriminator, example: jax.ShapeDtypeStruct) -> Any:
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if module.num_classes else None
    expected = jax.eval_shape(module.init, jax.random.key(0), example, labels)
    return load_variables(path, expected, _rename, _convert, _ignore)


def load_generator(path: str | os.PathLike, module: Generator) -> Any:
    """The variables of `module` (weights, constant noise, average of w) from the state dict of a generator.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    return _load(path, module, jax.ShapeDtypeStruct((1, module.latent_size), jnp.float32))


def load_discriminator(path: str | os.PathLike, module: Discriminator, image_channels: int = 3) -> Any:
    """The variables of `module` from the state dict of a discriminator.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    shape = (1, module.resolution, module.resolution, image_channels)
    return _load(path, module, jax.ShapeDtypeStruct(shape, jnp.float32))
