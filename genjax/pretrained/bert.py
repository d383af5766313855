"""BERT as transformers publishes it."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.bert import Bert
from genjax.pretrained.configuration import Field, Only
from genjax.pretrained.layouts import layer_names, prefixed
from genjax.pretrained.published import TRANSFORMERS, Config, Published, example

QUERY_KEY_VALUE = dict(query="query", key="key", value="value")
_BLOCK = prefixed("attention/", "attention.self.", QUERY_KEY_VALUE) | {
    "attention/projection": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_LAYERS = prefixed("blocks/", "encoder.layer.{}.", _BLOCK) | {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}


def one_token(module: nn.Module, config: Config) -> tuple:
    """Return the shortest text."""
    return (example(1, dtype=jnp.int32),)


def numbers_of_positions(name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor is the count 0, 1, 2, … that files of earlier versions hold."""
    counted = name.endswith("embeddings.position_ids")
    return counted and np.array_equal(tensor.flat, np.arange(tensor.size))


_SMALL = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
BERT = Published(
    TRANSFORMERS,
    "BertModel",
    Bert,
    entries=dict(
        vocab_size=Field("num_tokens", 30522),
        hidden_size=Field("width", 768),
        num_hidden_layers=Field("depth", 12),
        num_attention_heads=Field("num_heads", 12),
        intermediate_size=Field("mlp_width", 3072),
        max_position_embeddings=Field("max_length", 512),
        type_vocab_size=Field("num_types", 2),
        layer_norm_eps=Field("epsilon", 1e-12),
        hidden_act=Only("gelu"),
        position_embedding_type=Only("absolute"),
        is_decoder=Only(False),
        add_cross_attention=Only(False),
    ),
    unused="hidden_dropout_prob attention_probs_dropout_prob eos_token_id".split(),
    config=lambda module, variables: dict(model_type="bert"),
    inputs=one_token,
    names=lambda module, tensors: layer_names(_LAYERS),
    # The configuration does not say whether there is a pooler.
    adapt=lambda module, tensors: module.clone(pooler="pooler.dense.weight" in tensors),
    ignore=numbers_of_positions,
    examples=(_SMALL,),
)
PUBLISHED = (BERT,)
