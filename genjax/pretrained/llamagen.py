"""LlamaGen's transformers from their authors' state dicts (Sun et al. 2024), saved as safetensors.

`authors_autoencoders` reads the tokenizers.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.prefixes import ClassPrefix
from genjax.nn import Text
from genjax.pretrained.layouts import STACKED, from_torch, layer_names, part_of_stack, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.safetensors_io import open_tensors
from genjax.pretrained.variables import load_variables

_BLOCK = {
    **dict.fromkeys(STACKED, "attention.wqkv"),
    **dict(projection="attention.wo", attention_norm="attention_norm", mlp_norm="ffn_norm"),
    **dict(mlp_gate="feed_forward.w1", mlp_in="feed_forward.w3", mlp_out="feed_forward.w2"),
}
_LAYERS = prefixed("blocks/", "layers.{}.", _BLOCK) | {
    "prefix/label_embedding": "cls_embedding.embedding_table",
    "prefix/text_in": "cls_embedding.cap_proj.fc1",
    "prefix/text_out": "cls_embedding.cap_proj.fc2",
    "token_embedding": "tok_embeddings",
    "norm": "norm",
    "head": "output",
}
_NULL_TEXT = "cls_embedding.uncond_embedding"


def load(
    path: str | os.PathLike,
    module: LlamaGen,
    text_features: int = 2048,
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Args:
        text_features: of the text's states, for a `TextPrefix`.
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    if isinstance(module.prefix, ClassPrefix):
        condition = example(dtype=jnp.int32)
    else:
        condition = Text(example(module.prefix.length, text_features))
    tokens = example(1, dtype=jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), tokens, condition)
    is_null_text = lambda name, tensor: name == _NULL_TEXT
    return load_variables(path, abstract(expected), layer_names(_LAYERS), _convert, is_null_text)


def null_text(path: str | os.PathLike) -> Float[np.ndarray, "length text_features"]:
    """Read the states of the null text, which stand for a dropped text in guidance.

    The authors drew the states at random and did not train them.
    """
    return np.asarray(open_tensors(path)[_NULL_TEXT], np.float32)


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    return from_torch(variable, part_of_stack(variable, tensor))
