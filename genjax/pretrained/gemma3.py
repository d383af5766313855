"""Gemma 3's text model as transformers publishes it: alone, with its head, or with images.

LTX-2's folder holds `Gemma3ForConditionalGeneration`. Its vision tower, and what projects pictures
to tokens, are left out. The sizes of `genjax.models.encoders.gemma3` and of the examples in the
tests are from memory of the published configurations; their counts agree with the published totals.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.encoders.gemma3 import Gemma3Text
from genjax.pretrained.bert import one_token
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import Names, layer_names, prefixed
from genjax.pretrained.published import TRANSFORMERS, Config, Published

_EMBEDDING = "embed_tokens.weight"
_BLOCK = (
    {name: f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")}
    | dict(projection="self_attn.o_proj", query_norm="self_attn.q_norm")
    | dict(key_norm="self_attn.k_norm", norm_attention="input_layernorm")
    | dict(norm_projection="post_attention_layernorm", norm_mlp="pre_feedforward_layernorm")
    | dict(norm_mlp_out="post_feedforward_layernorm")
    | dict(mlp_gate="mlp.gate_proj", mlp_in="mlp.up_proj", mlp_out="mlp.down_proj")
)
_KINDS = "sliding_attention", "full_attention"
_PICTURES = ("vision_tower.", "multi_modal_projector.")
_OF_PICTURES = (
    "vision_config mm_tokens_per_image image_token_index boi_token_index eoi_token_index "
    "eos_token_id"
).split()
_UNUSED = (
    "eos_token_id max_position_embeddings final_logit_softcapping cache_implementation".split()
)


def _names(module: Gemma3Text, tensors: Collection[str]) -> Callable[[str], Names]:
    """Return the tensors' names, whose prefix differs between classes and versions."""
    embedding = next((name for name in tensors if name.endswith(_EMBEDDING)), _EMBEDDING)
    prefix = embedding.removesuffix(_EMBEDDING)
    return layer_names(
        prefixed("blocks/", f"{prefix}layers.{{}}.", _BLOCK)
        | {"token_embedding": f"{prefix}embed_tokens", "final_norm": f"{prefix}norm"}
    )


def _is_left_out(name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor belongs to pictures or to the head, which is the embedding's copy."""
    return name.removeprefix("model.").startswith(_PICTURES) or name.endswith("lm_head.weight")


def _build(config: Config) -> dict[str, Any]:
    """Return what the layers of either kind have, from the entries of transformers 4 or 5."""
    depth, every = config["num_hidden_layers"], config["sliding_window_pattern"]
    kinds = config["layer_types"]
    if kinds is None:
        kinds = [_KINDS[(i + 1) % every == 0] for i in range(depth)]
    for kind in kinds:
        expect(dict(layer_types=kind), "layer_types", *_KINDS)
    if len(kinds) != depth:
        raise ValueError(f"layer_types has {len(kinds)} values; num_hidden_layers={depth}")
    given = config["rope_parameters"] or dict(full_attention=config["rope_scaling"])
    for kind in given:
        expect(dict(rope_parameters=kind), "rope_parameters", *_KINDS)
    local, stretched = (dict(rope_type="default") | (given.get(kind) or {}) for kind in _KINDS)
    expect(local, "rope_type", "default")
    expect(stretched, "rope_type", "default", "linear")
    return dict(
        global_layers=tuple(i for i, kind in enumerate(kinds) if kind == _KINDS[1]),
        theta=float(local.get("rope_theta", config["rope_local_base_freq"])),
        global_theta=float(stretched.get("rope_theta", config["rope_theta"])),
        global_stretch=float(stretched.get("factor", 1.0)),
    )


def _config(module: Gemma3Text, variables: PyTree) -> dict[str, Any]:
    stretched = dict(rope_type="default", rope_theta=module.global_theta)
    if module.global_stretch != 1:
        stretched |= dict(rope_type="linear", factor=module.global_stretch)
    local = dict(rope_type="default", rope_theta=module.theta)
    kinds = [_KINDS[i in module.global_layers] for i in range(module.depth)]
    return dict(
        model_type="gemma3_text",
        layer_types=kinds,
        rope_parameters=dict(zip(_KINDS, (local, stretched), strict=True)),
    )


_ENTRIES = dict(
    vocab_size=Field("vocabulary_size", 262_208),
    hidden_size=Field("width", 2304),
    num_hidden_layers=Field("depth", 26),
    num_attention_heads=Field("num_heads", 8),
    num_key_value_heads=Field("num_kv_heads", 4),
    head_dim=Field("head_features", 256),
    intermediate_size=Field("mlp_features", 9216),
    sliding_window=Field("window", 4096),
    query_pre_attn_scalar=Field("query_features", 256),
    rms_norm_eps=Field("epsilon", 1e-6),
    layer_types=Value(None, list[str] | None),
    sliding_window_pattern=6,
    rope_parameters=Value(None, dict | None),
    rope_scaling=Value(None, dict | None),
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    hidden_activation=Only("gelu_pytorch_tanh"),
    attention_bias=Only(False),
    attn_logit_softcapping=Only(None),
    use_bidirectional_attention=Only(False, None),
)
_SMALL = dict(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=20,
    sliding_window=4,
    query_pre_attn_scalar=5,
)


def _record(name: str, **options: Any) -> Published:
    """Return the record of a class; all classes are written as the text model alone."""
    shared = dict(entries=_ENTRIES, unused=_UNUSED, build=_build, config=_config)
    return Published(
        TRANSFORMERS,
        name,
        Gemma3Text,
        writes=lambda module: name == "Gemma3TextModel",
        inputs=one_token,
        names=_names,
        **shared | options,
    )


GEMMA3 = _record(
    "Gemma3TextModel",
    examples=(
        _SMALL | dict(layer_types=[_KINDS[0], _KINDS[1], _KINDS[0]]),
        _SMALL | dict(rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0))),
    ),
)


def _build_text(config: Config) -> dict[str, Any]:
    """Return the fields of the text model of a model of texts and pictures."""
    try:
        return GEMMA3.fields(GEMMA3.complete(config["text_config"] or {}))
    except ValueError as error:
        raise ValueError(f"text_config: {error}") from error


PUBLISHED = (
    GEMMA3,
    _record("Gemma3ForCausalLM", examples=(_SMALL,), ignore=_is_left_out),
    _record(
        "Gemma3ForConditionalGeneration",
        entries=dict(text_config=Value({}, dict | None)),
        unused=_OF_PICTURES,
        build=_build_text,
        examples=(dict(text_config=_SMALL),),
        ignore=_is_left_out,
    ),
)
