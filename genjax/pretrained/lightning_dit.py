"""LightningDiT from its authors' state dict (Yao & Wang 2025), saved as safetensors.

In their program time runs the other way, from noise at 0 to data at 1, and the velocity points from noise to
data. Of a network with their weights genjax's velocity at t is

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
from genjax.pretrained.layouts import from_torch, layer_names
from genjax.pretrained.safetensors_io import load_variables

_LAYERS = {
    "patch_embedding": "x_embedder.proj",
    "time_embedding/linear_in": "t_embedder.mlp.0",
    "time_embedding/linear_out": "t_embedder.mlp.2",
    "label_embedding": "y_embedder.embedding_table",
    "blocks/modulation/dense": "blocks.{}.adaLN_modulation.1",
    "blocks/attention_norm": "blocks.{}.norm1",
    "blocks/query": "blocks.{}.attn.qkv",
    "blocks/key": "blocks.{}.attn.qkv",
    "blocks/value": "blocks.{}.attn.qkv",
    "blocks/query_norm": "blocks.{}.attn.q_norm",
    "blocks/key_norm": "blocks.{}.attn.k_norm",
    "blocks/projection": "blocks.{}.attn.proj",
    "blocks/mlp_norm": "blocks.{}.norm2",
    "blocks/mlp_gate": "blocks.{}.mlp.w12",
    "blocks/mlp_in": "blocks.{}.mlp.w12",
    "blocks/mlp_out": "blocks.{}.mlp.w3",
    "modulation/dense": "final_layer.adaLN_modulation.1",
    "norm": "final_layer.norm_final",
    "head": "final_layer.linear",
}
# Layers that are parts of one of theirs, which stacks their outputs: the part of how many.
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
    """The variables of `module` from a file or folder of safetensors.

    Tables of positions are not read; they are refused where they are others than the module's.

    Args:
        channels: of the latents.
        abstract: applied to the pytree of `jax.ShapeDtypeStruct` before reading: to change types or add
            shardings.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
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
        # Theirs are float32 throughout: angles up to the side, wrong by 1e-7 of them or two.
        return tensor.shape == table.shape and np.allclose(tensor, table, rtol=0, atol=1e-5)

    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    images = struct(1, module.patch_size, module.patch_size, channels)
    expected = jax.eval_shape(module.init, jax.random.key(0), images, struct(1), struct(1, dtype=jnp.int32))
    return load_variables(path, abstract(expected), layer_names(_LAYERS), _convert, is_table)
