"""BERT as transformers writes it (`BertModel`)."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.bert import Bert
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import load_variables, open_tensors, save_variables
from genjax.pretrained.transformers_configuration import complete, read_architecture

# What a configuration means that does not name it (transformers' signature).
_DEFAULTS = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    position_embedding_type="absolute",
    is_decoder=False,
    add_cross_attention=False,
)
# Entries that are not the network's.
_OTHERS = dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob", "eos_token_id"])
# Theirs for our layers.
_LAYERS = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "blocks/attention/query": "encoder.layer.{}.attention.self.query",
    "blocks/attention/key": "encoder.layer.{}.attention.self.key",
    "blocks/attention/value": "encoder.layer.{}.attention.self.value",
    "blocks/attention/projection": "encoder.layer.{}.attention.output.dense",
    "blocks/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "blocks/mlp_in": "encoder.layer.{}.intermediate.dense",
    "blocks/mlp_out": "encoder.layer.{}.output.dense",
    "blocks/mlp_norm": "encoder.layer.{}.output.LayerNorm",
}


def _rename(variable: str) -> str:
    _, *layer, name = variable.split("/")
    return f"{_LAYERS['/'.join(layer)]}.{'bias' if name == 'bias' else 'weight'}"


def _numbers_of_positions(name: str, tensor: np.ndarray) -> bool:
    """Files of earlier versions have them."""
    return name == "embeddings.position_ids" and np.array_equal(tensor, np.arange(tensor.size)[None])


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[Bert, Any]:
    """The module and its variables from a folder written by `save_pretrained` of transformers' `BertModel`.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; or one
            that lists all missing, extra and misshapen tensors.
    """
    _, config = read_architecture(folder, ["BertModel"])
    config = complete(config, _DEFAULTS | _OTHERS)
    for name in ("hidden_act", "position_embedding_type", "is_decoder", "add_cross_attention"):
        expect(config, name, _DEFAULTS[name])
    module = Bert(
        num_tokens=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_length=config["max_position_embeddings"],
        num_types=config["type_vocab_size"],
        pooler="pooler.dense.weight" in open_tensors(folder),  # the configuration does not say
        epsilon=config["layer_norm_eps"],
    )
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    expected = abstract(jax.eval_shape(module.init, jax.random.key(0), ids))
    return module, load_variables(folder, expected, _rename, ignore=_numbers_of_positions)


def save(folder: str | os.PathLike, module: Bert, variables: Any) -> None:
    """Writes what `load` and transformers read."""
    config = _DEFAULTS | dict(
        architectures=["BertModel"],
        model_type="bert",
        vocab_size=module.num_tokens,
        hidden_size=module.width,
        num_hidden_layers=module.depth,
        num_attention_heads=module.num_heads,
        intermediate_size=module.mlp_width,
        max_position_embeddings=module.max_length,
        type_vocab_size=module.num_types,
        layer_norm_eps=module.epsilon,
    )
    save_variables(folder, config, variables, _rename, name="model")
