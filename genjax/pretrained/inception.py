"""Inception-v3 from tensors with the names of pytorch-fid, torch-fidelity and torchvision."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from genjax.models.encoders.inception import Inception
from genjax.pretrained.layouts import torch_name
from genjax.pretrained.safetensors_io import open_tensors
from genjax.pretrained.variables import load_variables

FID_CLASSES = 1008


def load(path: str | os.PathLike) -> tuple[Inception, Any]:
    """Read the module and its variables from a file of tensors, safetensors or npz.

    A network with 1,008 classes is the network of FID; any other counts as torchvision's. Published
    files are pickled, and not read here. An environment with PyTorch converts them:

        tensors = torch.load("pt_inception-2015-12-05-6726825d.pth")
        safetensors.torch.save_file(tensors, "inception.safetensors")

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with tempfile.TemporaryDirectory() as folder, np.load(path, allow_pickle=False) as tensors:
            same = Path(folder) / "model.safetensors"
            save_file({name: np.ascontiguousarray(tensors[name]) for name in tensors}, same)
            return load(same)
    bias = open_tensors(path).get("fc.bias")
    num_classes = FID_CLASSES if bias is None else len(bias)
    module = Inception(num_classes, fid=num_classes == FID_CLASSES)
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    ignore = lambda name, _: name.startswith("AuxLogits.") or name.endswith("num_batches_tracked")
    return module, load_variables(path, expected, torch_name, ignore=ignore)
