"""Stable Audio's transformer and its projection of conditions as diffusers publishes them.

In diffusers a pair of features that turn together is (i, i + n), for the first 2n features of a
head. Here it is (2i, 2i + 1), so the columns of queries and keys are in another order.
"""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.encoders.timed_text import TimedText
from genjax.models.transformers.stable_audio_dit import StableAudioDiT
from genjax.nn import Text
from genjax.pretrained.configuration import Field
from genjax.pretrained.layouts import from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example
from genjax.pretrained.sd3 import HEADS

_ATTENTION = HEADS | dict(projection="to_out.0")
_BLOCK = (
    dict(self_attention_norm="norm1", cross_attention_norm="norm2", mlp_norm="norm3")
    | dict(mlp_in="ff.net.0.proj", mlp_out="ff.net.2")
    | prefixed("self_attention/", "attn1.", _ATTENTION)
    | prefixed("cross_attention/", "attn2.", _ATTENTION)
)
_LAYERS = prefixed("blocks/", "transformer_blocks.{}.", _BLOCK) | dict(
    convolution_in="preprocess_conv",
    convolution_out="postprocess_conv",
    embedding="proj_in",
    head="proj_out",
    frequencies="time_proj.weight",
    time_in="timestep_proj.0",
    time_out="timestep_proj.2",
    global_in="global_proj.0",
    global_out="global_proj.2",
    text_in="cross_attention_proj.0",
    text_out="cross_attention_proj.2",
)


def _order(module: StableAudioDiT) -> np.ndarray:
    """Return for each feature of a query its number in diffusers' order."""
    size = module.width // module.num_heads
    pairs = np.arange(size // 2).reshape(2, -1).T.reshape(-1)  # (0, n), (1, n + 1), …
    of_head = np.concatenate([pairs, np.arange(size // 2, size)])
    return (size * np.arange(module.num_heads)[:, None] + of_head).reshape(-1)


def _is_turned(variable: str) -> bool:
    return variable.endswith(("self_attention/query/kernel", "self_attention/key/kernel"))


def _convert(module: StableAudioDiT, variable: str, tensor: np.ndarray) -> np.ndarray:
    if "/convolution_" in variable:
        return tensor.reshape(tensor.shape[:2]).T
    array = from_torch(variable, tensor)
    return array[:, _order(module)] if _is_turned(variable) else array


def _invert(module: StableAudioDiT, variable: str, array: np.ndarray) -> np.ndarray:
    if "/convolution_" in variable:
        return array.T[..., None]
    if _is_turned(variable):
        array = array[:, np.argsort(_order(module))]
    return to_torch(variable, array)


def _build(config: Config) -> dict[str, Any]:
    return dict(width=config["num_attention_heads"] * config["attention_head_dim"])


def _config(module: StableAudioDiT, variables: PyTree) -> dict[str, Any]:
    params = variables["params"]
    channels = params["embedding"]["kernel"].shape[0]
    return dict(
        in_channels=channels,
        out_channels=module.out_channels or channels,
        attention_head_dim=module.width // module.num_heads,
        global_states_input_dim=params["global_in"]["kernel"].shape[0],
        cross_attention_input_dim=params["text_in"]["kernel"].shape[0],
    )


def _inputs(module: StableAudioDiT, config: Config) -> tuple:
    tokens = example(1, config["cross_attention_input_dim"])
    text = Text(tokens, example(config["global_states_input_dim"]))
    return example(1, config["in_channels"]), example(), text


_SMALL = (
    dict(num_attention_heads=4, num_key_value_attention_heads=2, attention_head_dim=8)
    | dict(num_layers=2, in_channels=3, out_channels=3, cross_attention_dim=16, time_proj_dim=6)
    | dict(global_states_input_dim=10, cross_attention_input_dim=5)
)
STABLE_AUDIO_DIT = Published(
    DIFFUSERS,
    "StableAudioDiTModel",
    StableAudioDiT,
    entries=dict(
        in_channels=64,
        num_layers=Field("depth", 24),
        attention_head_dim=64,
        num_attention_heads=Field("num_heads", 24),
        num_key_value_attention_heads=Field("num_kv_heads", 12),
        out_channels=Field("out_channels", 64),
        cross_attention_dim=Field("text_width", 768),
        time_proj_dim=Field("time_features", 256),
        global_states_input_dim=1536,
        cross_attention_input_dim=768,
    ),
    unused=("sample_size",),
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    convert=_convert,
    invert=_invert,
    examples=(_SMALL, _SMALL | dict(num_key_value_attention_heads=4, cross_attention_dim=32)),
)
_NUMBER = dict(frequencies="0.weights", dense="1")
_CONDITIONS = dict(projection="text_projection") | {
    f"{end}/{ours}": f"{end}_number_conditioner.time_positional_embedding.{published}"
    for end in ("start", "end")
    for ours, published in _NUMBER.items()
}


def _timed_text_config(module: TimedText, variables: PyTree) -> dict[str, Any]:
    if not module.projects:
        return dict(text_encoder_dim=module.features)
    width = variables["params"]["projection"]["kernel"].shape[0]
    if width == module.features:
        raise ValueError(f"states of {width} features pass no layer to as many features")
    return dict(text_encoder_dim=width)


TIMED_TEXT = Published(
    DIFFUSERS,
    "StableAudioProjectionModel",
    TimedText,
    entries=dict(
        text_encoder_dim=768,
        conditioning_dim=Field("features", 768),
        min_value=Field("least_seconds", 0.0),
        max_value=Field("most_seconds", 512.0),
    ),
    build=lambda config: dict(projects=config["text_encoder_dim"] != config["conditioning_dim"]),
    config=_timed_text_config,
    inputs=lambda module, config: (example(1, config["text_encoder_dim"]), example(), example()),
    names=lambda module, tensors: layer_names(_CONDITIONS),
    examples=(
        dict(text_encoder_dim=6, conditioning_dim=4, min_value=0, max_value=30),
        dict(text_encoder_dim=5, conditioning_dim=5),
    ),
)
PUBLISHED = (STABLE_AUDIO_DIT, TIMED_TEXT)
