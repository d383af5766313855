"""VGGish from the public PyTorch weights (torchvggish, converted from AudioSet's TensorFlow)."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from genjax.models.encoders.vggish import BLOCKS, FRAMES, LAYERS, NUM_MELS, VGGish
from genjax.pretrained.layouts import from_torch, layer_names
from genjax.pretrained.variables import load_variables

# Places in torchvggish's two `Sequential`s, which count rectifiers and poolings too.
_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
_names = layer_names(
    {name: f"embeddings.{2 * i}" for i, name in enumerate(LAYERS)}
    | {
        name: f"features.{i}"
        for name, i in zip([name for block in BLOCKS for name in block], _CONVOLUTIONS, strict=True)
    }
)


def load(path: str | os.PathLike) -> tuple[VGGish, Any]:
    """Read the module and its variables from safetensors.

    Published files are pickled, and not read here. An environment with PyTorch converts them:

        tensors = torch.load("vggish-10086976.pth")
        safetensors.torch.save_file(tensors, "vggish.safetensors")

    The whitening of torchvggish's postprocessor (`pproc`) is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    module = VGGish()
    patches = jax.ShapeDtypeStruct((1, FRAMES, NUM_MELS), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), patches)
    ignore = lambda name, tensor: name.startswith("pproc.")
    return module, load_variables(path, expected, _names, from_torch, ignore)
