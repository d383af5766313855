"""The MaskGIT of Besnier et al. 2025 from its authors' state dict, saved as safetensors.

Its codes are those of LlamaGen's tokenizer, which `authors_autoencoders` reads.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genjax.models.autoregressive.halton_maskgit import HaltonMaskGIT
from genjax.pretrained.layouts import from_torch, layer_names, only_copy, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_BLOCK = {
    **dict(query="attn.wq", key="attn.wk", value="attn.wv", projection="attn.wo"),
    **dict(attention_norm="ln1", mlp_norm="ln2"),
    **{"modulation/dense": "mlp.1"},
    **dict(mlp_gate="ff.w1", mlp_in="ff.w3", mlp_out="ff.w2"),
}
_LAYERS = prefixed("blocks/", "transformer.layers.{}.", _BLOCK) | {
    **dict(label_embedding="cls_emb", positions="pos_emb.weight", registers="reg_tokens.weight"),
    "token_embedding/embedding": ("tok_emb.weight", "head.weight"),
    **{"head_modulation/dense": "last_norm.mlp.1", "norm": "last_norm.norm_final"},
    **dict(norm_bias="last_norm.norm_final.bias", bias="head.bias"),
}


def load(
    path: str | os.PathLike,
    module: HaltonMaskGIT,
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Args:
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    inputs = example(module.length, dtype=jnp.int32), example(dtype=jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return load_variables(path, abstract(expected), layer_names(_LAYERS), _convert)


def _convert(variable, tensor, *copies):
    """Convert a tensor. The head's matrix is a copy of the token embedding."""
    return from_torch(variable, only_copy(tensor, *copies))
