"""I3D from tensors with the names of the public PyTorch weights (Piergiovanni's pytorch-i3d)."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.i3d import I3D, LEAST_FRAMES, SIDE
from genjax.pretrained.layouts import from_torch, torch_name
from genjax.pretrained.safetensors_io import open_tensors
from genjax.pretrained.variables import load_variables


def _rename(variable: str) -> str:
    return torch_name(variable.replace("/logits/", "/logits/conv3d/"))


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in our layout; the classifier's 1×1×1 convolution becomes a matrix."""
    array = from_torch(variable, tensor)
    return array.reshape(array.shape[-2:]) if variable.endswith("logits/kernel") else array


def load(path: str | os.PathLike) -> tuple[I3D, Any]:
    """Read the module and its variables from safetensors.

    Published files are pickled, and not read here. An environment with PyTorch converts them:

        tensors = torch.load("i3d_pretrained_400.pt")
        safetensors.torch.save_file(tensors, "i3d.safetensors")

    This file of VideoGPT's program has the weights of TensorFlow Hub's `i3d-kinetics-400`, of which
    published Fréchet video distances are. The file of pytorch-i3d, `rgb_imagenet.pt`, can be read
    too, but its weights are of another training. Distances by the two files are not comparable.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    bias = open_tensors(path).get("logits.conv3d.bias")
    module = I3D(400 if bias is None else len(bias))
    videos = jax.ShapeDtypeStruct((1, LEAST_FRAMES, SIDE, SIDE, 3), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), videos)
    ignore = lambda name, tensor: name.endswith("num_batches_tracked")
    return module, load_variables(path, expected, _rename, _convert, ignore)
