"""StyleGAN2's weights as its authors' stylegan2-ada-pytorch and stylegan3 write them (2020, 2021).

A file holds the state dict of one of the modules `G`, `G_ema` or `D`, in safetensors.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from genjax.models.gans.stylegan2 import Discriminator, Generator
from genjax.nn.fir import BINOMIAL
from genjax.pretrained.layouts import from_torch, replace_words
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_WORDS = {
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
    return ".".join(replace_words(variable.split("/")[1:], _WORDS))  # without the collection


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the array of a channel-first kernel or image."""
    if variable.endswith("epilogue/dense/kernel"):  # its input is the flattened 4×4 features
        return tensor.reshape(len(tensor), -1, 4, 4).transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    if re.search(r"synthesis/block\d+/conv0/kernel$", variable):
        tensor = tensor[:, :, ::-1, ::-1]  # up-sampling layers convolve, others correlate
    if variable.endswith("constant"):
        return np.moveaxis(tensor, 0, -1)
    return from_torch(variable, tensor)


def is_filter(name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor is the filter, which is a constant in our modules."""
    taps = np.asarray(BINOMIAL) / np.sum(BINOMIAL)
    named = name.endswith(("resample_filter", "Resampler.Kernel"))
    return named and np.array_equal(tensor, np.outer(taps, taps))


def _load(path: str | os.PathLike, module: Generator | Discriminator, inputs: Array) -> Any:
    labels = example(dtype=jnp.int32) if module.num_classes else None
    expected = jax.eval_shape(module.init, jax.random.key(0), inputs, labels)
    return load_variables(path, expected, _rename, _convert, is_filter)


def load_generator(path: str | os.PathLike, module: Generator) -> Any:
    """Read the variables of `module` from the state dict of a generator.

    The variables are weights, constant noise and the average of w.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    return _load(path, module, example(module.latent_size))


def load_discriminator(
    path: str | os.PathLike, module: Discriminator, image_channels: int = 3
) -> Any:
    """Read the variables of `module` from the state dict of a discriminator.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    return _load(path, module, example(module.resolution, module.resolution, image_channels))
