"""VAR from its authors' state dicts (Tian et al. 2024), saved as safetensors.

`authors_autoencoders` reads the tokenizer.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.autoregressive.var import VAR
from genjax.pretrained.layouts import STACKED, from_torch, layer_names, part_of_stack, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_BLOCK = {
    **{f"{part}/kernel": "attn.mat_qkv.weight" for part in STACKED},
    **{"query/bias": "attn.q_bias", "value/bias": "attn.v_bias"},
    **dict(log_scale="attn.scale_mul_1H11", own_modulation="ada_gss"),
    **{"projection": "attn.proj", "modulation/dense": "ada_lin.1"},
    **dict(mlp_in="ffn.fc1", mlp_out="ffn.fc2"),
}
_LAYERS = prefixed("blocks/", "blocks.{}.", _BLOCK) | {
    **dict(start_positions="pos_start", positions="pos_1LC", levels="lvl_embed.weight"),
    **dict(input_embedding="word_embed", labels="class_emb", head="head"),
    "modulation/dense": "shared_ada_lin.1",
    "head_modulation/dense": "head_nm.ada_lin.1",
}


def load(
    path: str | os.PathLike,
    module: VAR,
    features: int = 32,
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Tables of scales and masks, and biases of keys, are only compared with what they must be, and
    refused if they differ.

    Args:
        features: of the tokenizer's codes.
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    inputs = example(module.length - module.sides[0] ** 2, features), example(dtype=jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    ignore, convert = (functools.partial(f, module) for f in (_is_constant, _convert))
    return load_variables(path, abstract(expected), layer_names(_LAYERS), convert, ignore)


def _is_constant(module: VAR, name: str, tensor: np.ndarray) -> bool:
    if name.endswith("zero_k_bias"):
        return not np.any(tensor)
    if name == "lvl_1L":
        return np.array_equal(tensor[0], module.scales)
    visible = module.scales[:, None] >= module.scales
    return name == "attn_bias_for_masking" and np.array_equal(tensor[0, 0] == 0, visible)


def _convert(module: VAR, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Take one of the three layers that a tensor stacks, and leave out axes of length 1."""
    leaf = variable.split("/")[-1]
    if leaf == "kernel":
        tensor = part_of_stack(variable, tensor)
    if leaf in ("start_positions", "positions"):
        return tensor[0]
    if leaf in ("log_scale", "own_modulation"):
        return tensor.reshape(-1)
    return from_torch(variable, tensor)
