"""BERT as transformers publishes it, alone or with a head; the head is ignored."""

from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.bert import Bert
from genjax.pretrained.configuration import Field, Only
from genjax.pretrained.layouts import Names, layer_names, prefixed
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
    """Return whether a tensor is the sequence 0, 1, 2, … that files of earlier versions hold."""
    counted = name.endswith("embeddings.position_ids")
    return counted and np.array_equal(tensor.flat, np.arange(tensor.size))


def _names(module: Bert, tensors: Collection[str]) -> Callable[[str], Names]:
    """Return the tensors' names, which have a prefix if the file has a head.

    The earliest files have TensorFlow's names in norms, gamma and beta.
    """
    names = layer_names(_LAYERS)
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    former = any(name.endswith("LayerNorm.gamma") for name in tensors)

    def name(variable: str) -> str:
        published = prefix + names(variable)
        if former:
            published = published.replace("LayerNorm.weight", "LayerNorm.gamma")
            published = published.replace("LayerNorm.bias", "LayerNorm.beta")
        return published

    return name


def _choose_pooler(module: Bert, tensors: Mapping[str, np.ndarray]) -> Bert:
    """Return the module with or without a pooler; only the tensors tell which."""
    return module.clone(pooler=any(name.endswith("pooler.dense.weight") for name in tensors))


_SMALL = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
_HEADS = ("cls.", "classifier.", "qa_outputs.")


def _record(kind: str) -> Published:
    """Return the record of a class; its head, if any, is ignored."""
    alone = kind == "Model"
    return Published(
        TRANSFORMERS,
        f"Bert{kind}",
        Bert,
        writes=lambda module: alone,
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
        names=_names,
        adapt=_choose_pooler,
        ignore=lambda name, tensor: (
            numbers_of_positions(name, tensor) or (not alone and name.startswith(_HEADS))
        ),
        examples=(_SMALL,),
    )


_CLASSES = (
    "Model ForPreTraining ForMaskedLM ForNextSentencePrediction ForSequenceClassification "
    "ForTokenClassification ForQuestionAnswering"
).split()
PUBLISHED = tuple(map(_record, _CLASSES))
BERT = PUBLISHED[0]
