"""Encoders of T5 and UMT5 as transformers publishes them, alone or with their decoders."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from genjax.models.encoders.t5 import T5Encoder
from genjax.pretrained.bert import one_token
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import Names, from_torch, layer_names, only_copy, prefixed
from genjax.pretrained.published import TRANSFORMERS, Config, Published

_UNUSED = (
    "is_gated_act num_decoder_layers scale_decoder_outputs eos_token_id n_positions "
    "scalable_attention"  # in UMT5's files; no version of the library reads it
).split()
_GATES = {"relu": None, "gated-gelu": "gelu", "gated-silu": "silu"}
_ACTIVATIONS = {None: "relu", "gelu": "gelu_new", "silu": "silu"}  # transformers' names
_EMBEDDINGS = ("shared", "encoder.embed_tokens")  # one table; files have either or both
_ATTENTION = dict(query="q", key="k", value="v", projection="o")


def _names(module: T5Encoder, tensors: Collection[str]) -> Callable[[str], Names]:
    attention, mlp = "encoder.block.{}.layer.0.", "encoder.block.{}.layer.1."
    bias = attention + "SelfAttention.relative_attention_bias"
    embeddings = tuple(name for name in _EMBEDDINGS if f"{name}.weight" in tensors)
    mlp_layers = dict(mlp_gate="wi_0", mlp_in="wi_1" if module.gate else "wi", mlp_out="wo")
    return layer_names(
        prefixed("blocks/", attention + "SelfAttention.", _ATTENTION)
        | prefixed("blocks/", mlp + "DenseReluDense.", mlp_layers)
        | {
            "blocks/norm_attention": attention + "layer_norm",
            "blocks/norm_mlp": mlp + "layer_norm",
            "blocks/relative_bias": bias,
            "relative_bias": bias.format(0),
            "final_norm": "encoder.final_layer_norm",
            "token_embedding": embeddings or _EMBEDDINGS[0],
        }
    )


def _convert(module: T5Encoder, variable: str, *copies: np.ndarray) -> np.ndarray:
    return from_torch(variable, only_copy(*copies))


def _record(family: str, kind: str, activations: tuple[str, ...], *sizes: int) -> Published:
    alone, bias_per_block = kind == "EncoderModel", family == "UMT5"

    def build(config: Config) -> dict[str, Any]:
        gate = _GATES[config["feed_forward_proj"]]
        expect(config, "dense_act_fn", None, _ACTIVATIONS[gate])
        return dict(bias_per_block=bias_per_block)

    vocabulary_size, mlp_features, depth, num_heads = sizes
    small = dict(vocab_size=23, d_model=20, d_kv=6, d_ff=28, num_layers=2, num_heads=3)
    return Published(
        TRANSFORMERS,
        f"{family}{kind}",
        T5Encoder,
        writes=lambda module: alone and module.bias_per_block == bias_per_block,
        entries=dict(
            vocab_size=Field("vocabulary_size", vocabulary_size),
            d_model=Field("width", 512),
            d_kv=Field("head_features", 64),
            d_ff=Field("mlp_features", mlp_features),
            num_layers=Field("depth", depth),
            num_heads=Field("num_heads", num_heads),
            relative_attention_num_buckets=Field("num_buckets", 32),
            relative_attention_max_distance=Field("max_distance", 128),
            layer_norm_epsilon=Field("epsilon", 1e-6),
            feed_forward_proj=Field("gate", activations[0], _GATES),
            dense_act_fn=Value(None, str | None),  # follows from feed_forward_proj
            is_decoder=Only(False),
        ),
        unused=_UNUSED,
        build=build,
        config=lambda module, variables: dict(model_type=family.lower()),
        inputs=one_token,
        names=_names,
        convert=_convert,
        ignore=lambda name, tensor: not alone and name.startswith(("decoder.", "lm_head.")),
        examples=tuple(small | dict(feed_forward_proj=name) for name in activations[: 1 + alone]),
    )


PUBLISHED = tuple(
    record
    for kind in ("EncoderModel", "Model", "ForConditionalGeneration")
    for record in (
        _record("T5", kind, ("relu", "gated-gelu"), 32_128, 2048, 6, 8),
        _record("UMT5", kind, ("gated-gelu", "relu"), 250_112, 1024, 8, 6),
    )
)
