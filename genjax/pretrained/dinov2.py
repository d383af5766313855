"""DINOv2 as transformers publishes it, with and without registers."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.encoders.dinov2 import Dinov2
from genjax.pretrained.bert import QUERY_KEY_VALUE
from genjax.pretrained.configuration import Field, Natural, Only, Value, expect
from genjax.pretrained.layouts import from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import TRANSFORMERS, Published, example

_BLOCK = (
    dict(attention_norm="norm1", attention_scale="layer_scale1.lambda1")
    | prefixed("attention/", "attention.attention.", QUERY_KEY_VALUE)
    | {"attention/projection": "attention.output.dense"}
    | dict(mlp_norm="norm2", mlp_scale="layer_scale2.lambda1")
)
_MLPS = {
    False: dict(mlp_in="mlp.fc1", mlp_out="mlp.fc2"),
    True: dict(mlp_in="mlp.weights_in", mlp_out="mlp.weights_out"),  # gated
}
_LAYERS = prefixed("", "embeddings.", dict(class_token="cls_token", mask_token="mask_token")) | {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "norm": "layernorm",
}
# The number of axes of size 1 that the tensors have before our axes.
_AXES = dict(class_token=2, mask_token=1, registers=1, positions=1)


def _convert(module: Dinov2, variable: str, tensor: np.ndarray) -> np.ndarray:
    axes = _AXES.get(variable.removeprefix("params/"), 0)
    return from_torch(variable, tensor).squeeze(tuple(range(axes)))


def _invert(module: Dinov2, variable: str, array: np.ndarray) -> np.ndarray:
    axes = _AXES.get(variable.removeprefix("params/"), 0)
    return to_torch(variable, array, module.patch_size)[(None,) * axes]


def _config(module: Dinov2, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "position_offset", 0.0)
    features = variables["params"]["patch_embedding"]["kernel"].shape[0]
    config = dict(model_type="dinov2", num_channels=features // module.patch_size**2)
    if not module.num_registers:
        return config
    registers = dict(num_register_tokens=module.num_registers)
    return config | registers | dict(model_type="dinov2_with_registers")


def _record(name: str, registers: bool, entries: dict[str, Any], *examples: dict) -> Published:
    small = dict(hidden_size=12, num_attention_heads=2, num_hidden_layers=2)
    small |= dict(patch_size=2, image_size=10)
    return Published(
        TRANSFORMERS,
        name,
        Dinov2,
        writes=lambda module: bool(module.num_registers) == registers,
        entries=dict(
            hidden_size=Field("width", 768),
            num_hidden_layers=Field("depth", 12),
            num_attention_heads=Field("num_heads", 12),
            mlp_ratio=Field("mlp_ratio", 4),
            layer_norm_eps=Field("epsilon", 1e-6),
            image_size=Field("image_size", 224),
            num_channels=3,
            use_swiglu_ffn=Field("gated", False),
            hidden_act=Only("gelu"),
            qkv_bias=Only(True),
            use_mask_token=Only(True),
        )
        | entries,
        unused="hidden_dropout_prob attention_probs_dropout_prob drop_path_rate layerscale_value "
        "out_features out_indices stage_names apply_layernorm reshape_hidden_states".split(),
        build=lambda config: dict(num_registers=config.get("num_register_tokens", 0)),
        config=_config,
        inputs=lambda module, config: (
            example(module.patch_size, module.patch_size, config["num_channels"]),
        ),
        names=lambda module, tensors: layer_names(
            _LAYERS | prefixed("blocks/", "encoder.layer.{}.", _BLOCK | _MLPS[module.gated])
        ),
        convert=_convert,
        invert=_invert,
        examples=tuple(small | example for example in examples),
    )


PUBLISHED = (
    _record(
        "Dinov2Model",
        False,
        dict(patch_size=Field("patch_size", 14)),
        dict(num_channels=2),
        dict(use_swiglu_ffn=True, mlp_ratio=3),
    ),
    _record(
        "Dinov2WithRegistersModel",
        True,
        dict(
            patch_size=Field("patch_size", 16),
            num_register_tokens=Value(4, Natural),
            # Published folders have these entries, which transformers no longer knows.
            interpolate_antialias=Only(True),
            interpolate_offset=Only(0.0),
        ),
        dict(num_register_tokens=3),
    ),
)
