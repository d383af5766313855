"""Vocos' vocoder from its authors' state dict (Siuzdak 2023), saved as safetensors."""

import os
from typing import Any

import jax
import numpy as np

from genjax.models.autoencoders.vocos import Vocos
from genjax.pretrained.layouts import from_torch, layer_names, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_BLOCK = dict(norm="norm", mlp_in="pwconv1", mlp_out="pwconv2")
_BLOCK_LEAVES = dict(kernel="dwconv.weight", bias="dwconv.bias", scale="gamma")
_LAYERS = {
    "backbone/embedding": "backbone.embed",
    "backbone/norm_in": "backbone.norm",
    "backbone/norm_out": "backbone.final_layer_norm",
    "head": "head.out",
    **prefixed("backbone/blocks/", "backbone.convnext.{}.", _BLOCK | _BLOCK_LEAVES),
}


def load(path: str | os.PathLike, module: Vocos) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    sound = example(8 * module.n_fft, module.channels)
    expected = jax.eval_shape(module.init, jax.random.key(0), sound)
    # Tables of the transforms, which follow from the sizes.
    is_table = lambda name, tensor: name.startswith(("feature_extractor.", "head.istft."))
    return load_variables(path, expected, layer_names(_LAYERS), _convert, is_table)


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the kernel of single channels, `[channels 1 taps]`, as `[taps channels]`."""
    if variable.endswith("blocks/kernel"):
        return tensor[:, 0].T
    return from_torch(variable, tensor)
