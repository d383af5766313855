"""LightningDiT from its authors' state dict (Yao & Wang 2025), saved as safetensors.

In the authors' program time runs in the other direction, from noise at 0 to data at 1, and the
velocity points from noise to data. With their weights genjax's velocity at t is

    -module.apply(variables, x, 1 - t, labels)
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.transformers.lightning_dit import LightningDiT
from genjax.nn import sincos_positions
from genjax.pretrained.layouts import from_torch, layer_names, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_BLOCK = (
    prefixed("", "attn.", dict(query="qkv", key="qkv", value="qkv", projection="proj"))
    | prefixed("", "attn.", dict(query_norm="q_norm", key_norm="k_norm"))
    | dict(attention_norm="norm1", mlp_norm="norm2")
    | dict(mlp_gate="mlp.w12", mlp_in="mlp.w12", mlp_out="mlp.w3")
    | {"modulation/dense": "adaLN_modulation.1"}
)
_LAYERS = prefixed("blocks/", "blocks.{}.", _BLOCK) | {
    "patch_embedding": "x_embedder.proj",
    "time_embedding/linear_in": "t_embedder.mlp.0",
    "time_embedding/linear_out": "t_embedder.mlp.2",
    "label_embedding": "y_embedder.embedding_table",
    "modulation/dense": "final_layer.adaLN_modulation.1",
    "norm": "final_layer.norm_final",
    "head": "final_layer.linear",
}
# Layers that are parts of one published layer, which stacks outputs: index and number of parts.
_PARTS = {"query": (0, 3), "key": (1, 3), "value": (2, 3), "mlp_gate": (0, 2), "mlp_in": (1, 2)}


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    layer = variable.split("/")[-2]
    if layer in _PARTS:
        part, parts = _PARTS[layer]
        tensor = np.split(tensor, parts)[part]
    return from_torch(variable, tensor)


def load(
    path: str | os.PathLike,
    module: LightningDiT,
    channels: int = 32,
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Tables of positions are only compared with the module's, and refused if they differ.

    Args:
        channels: the number of the latents' channels.
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """

    def is_table(name: str, tensor: np.ndarray) -> bool:
        if name == "pos_embed":
            side = math.isqrt(tensor.shape[1])
            table = sincos_positions(side, side, module.width)[None]
        elif name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin"):
            side = math.isqrt(len(tensor))
            table = module.rotations(side, side)[..., int(name.endswith("sin"))].repeat(2, axis=-1)
        else:
            return False
        # Published tables were computed in float32, with relative errors of 1e-7 or 2e-7 in angles.
        return tensor.shape == table.shape and np.allclose(tensor, table, rtol=0, atol=1e-5)

    images = example(module.patch_size, module.patch_size, channels)
    inputs = images, example(), example(dtype=jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return load_variables(path, abstract(expected), layer_names(_LAYERS), _convert, is_table)
