"""HunyuanVideo-1.5's transformer as diffusers publishes it.

The outputs equal those of diffusers at `timestep` = 1000·t and `timestep_r` = 1000·`end_time`.
diffusers has an image of zeros where there is none here.
"""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.transformers.hunyuan_video import THETA, HunyuanVideo
from genjax.nn import Text
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.layouts import from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example
from genjax.pretrained.sd3 import HEADS, TWO_STREAMS

_MLP = dict(linear_in="linear_1", linear_out="linear_2")
_REFINER_BLOCK = (
    prefixed("", "attn.", HEADS | dict(projection="to_out.0"))
    | dict(attention_norm="norm1", mlp_norm="norm2")
    | {"mlp_in": "ff.net.0.proj", "mlp_out": "ff.net.2", "modulation/dense": "norm_out.linear"}
)
_REFINER = (
    prefixed("time_embedding/", "time_text_embed.timestep_embedder.", _MLP)
    | prefixed("text_embedding/", "time_text_embed.text_embedder.", _MLP)
    | prefixed("blocks/", "token_refiner.refiner_blocks.{}.", _REFINER_BLOCK)
    | dict(text_in="proj_in")
)
_GLYPHS = dict(norm="norm", layer_0="linear_1", layer_1="linear_2", layer_2="linear_3")
_IMAGE = dict(norm="norm_in", layer_0="linear_1", layer_1="linear_2", out_norm="norm_out")
_LAYERS = (
    prefixed("time_embedding/", "time_embed.timestep_embedder.", _MLP)
    | prefixed("end_time_embedding/", "time_embed.timestep_embedder_r.", _MLP)
    | prefixed("text_refiner/", "context_embedder.", _REFINER)
    | prefixed("glyph_projection/", "context_embedder_2.", _GLYPHS)
    | prefixed("image_projection/", "image_embedder.", _IMAGE)
    | prefixed("blocks/", "transformer_blocks.{}.", TWO_STREAMS)
    | dict(kind_embedding="cond_type_embed", embedding="x_embedder.proj", head="proj_out")
    | {"modulation/dense": "norm_out.linear"}
)
_EMBEDDING = "params/embedding/kernel"  # a convolution over single latents in diffusers


def _convert(module: HunyuanVideo, variable: str, tensor: np.ndarray) -> np.ndarray:
    if variable == _EMBEDDING:
        tensor = tensor.reshape(tensor.shape[:2])
    return from_torch(variable, tensor)


def _invert(module: HunyuanVideo, variable: str, array: np.ndarray) -> np.ndarray:
    tensor = to_torch(variable, array)
    return tensor[..., None, None, None] if variable == _EMBEDDING else tensor


def _build(config: Config) -> dict[str, Any]:
    expect(config, "attention_head_dim", sum(config["rope_axes_dim"]))
    return {}


def _config(module: HunyuanVideo, variables: PyTree) -> dict[str, Any]:
    params = variables["params"]
    expect(vars(module), "time_scale", 1000.0)
    return dict(
        in_channels=params["embedding"]["kernel"].shape[0],
        out_channels=params["head"]["kernel"].shape[1],
        attention_head_dim=sum(module.rotary_features),
        text_embed_dim=params["text_refiner"]["text_in"]["kernel"].shape[0],
        text_embed_2_dim=params["glyph_projection"]["layer_0"]["kernel"].shape[0],
        image_embed_dim=params["image_projection"]["layer_0"]["kernel"].shape[0],
    )


def _inputs(module: HunyuanVideo, config: Config) -> tuple:
    states = [example(1, config[f"{name}_dim"]) for name in ("text_embed", "text_embed_2")]
    image = example(1, config["image_embed_dim"])
    end_time = example() if module.takes_end_time else None
    video = example(1, 1, 1, config["in_channels"])
    return video, example(), *map(Text, states), image, end_time


_SMALL = (
    dict(in_channels=5, out_channels=2, num_attention_heads=2, attention_head_dim=8, num_layers=2)
    | dict(num_refiner_layers=1, rope_axes_dim=[2, 2, 4])
    | dict(text_embed_dim=7, text_embed_2_dim=6, image_embed_dim=9)
)
HUNYUAN_VIDEO = Published(
    DIFFUSERS,
    "HunyuanVideo15Transformer3DModel",
    HunyuanVideo,
    entries=dict(
        in_channels=65,
        out_channels=Field("out_channels", 32, kind=int | None),
        num_attention_heads=Field("num_heads", 16),
        attention_head_dim=128,
        num_layers=Field("depth", 54),
        num_refiner_layers=Field("refiner_depth", 2),
        mlp_ratio=Only(4.0),
        patch_size=Only(1),
        patch_size_t=Only(1),
        qk_norm=Only("rms_norm"),
        text_embed_dim=3584,
        text_embed_2_dim=1472,
        image_embed_dim=1152,
        rope_theta=Only(THETA),
        rope_axes_dim=Field("rotary_features", [16, 56, 56]),
        use_meanflow=Field("takes_end_time", False),
    ),
    unused=("target_size", "task_type"),  # pipelines use them
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    convert=_convert,
    invert=_invert,
    examples=(_SMALL, _SMALL | dict(use_meanflow=True, num_refiner_layers=2)),
)
PUBLISHED = (HUNYUAN_VIDEO,)
