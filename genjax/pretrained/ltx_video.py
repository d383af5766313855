"""LTX-Video's transformer as diffusers publishes it.

The outputs equal those of diffusers at `timestep` = 1000·t and at `video_coords` of the same
`coordinates`. The latents of a clip are in the order of frames, rows and columns.
"""

from typing import Any

from jaxtyping import PyTree

from genjax.models.transformers.ltx_video import LTXVideo
from genjax.nn import Text
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.layouts import layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example
from genjax.pretrained.sd3 import HEADS

_ATTENTION = HEADS | dict(projection="to_out.0")
_BLOCK = (
    {"modulation/table": "scale_shift_table", "mlp_in": "ff.net.0.proj", "mlp_out": "ff.net.2"}
    | prefixed("self_attention/", "attn1.", _ATTENTION)
    | prefixed("cross_attention/", "attn2.", _ATTENTION)
)
_TIME, _MLP = "time_embed.emb.timestep_embedder.", dict(linear_in="linear_1", linear_out="linear_2")
_LAYERS = (
    prefixed("blocks/", "transformer_blocks.{}.", _BLOCK)
    | prefixed("time_embedding/", _TIME, _MLP)
    | {
        "patch_embedding": "proj_in",
        "modulation": "time_embed.linear",
        "text_in": "caption_projection.linear_1",
        "text_out": "caption_projection.linear_2",
        "head_modulation/table": "scale_shift_table",
        "head": "proj_out",
    }
)


def _build(config: Config) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    expect(config, "cross_attention_dim", width)
    return dict(width=width)


def _config(module: LTXVideo, variables: PyTree) -> dict[str, Any]:
    params = variables["params"]
    expect(vars(module), "time_scale", 1000.0)
    return dict(
        in_channels=params["patch_embedding"]["kernel"].shape[0],
        out_channels=params["head"]["kernel"].shape[1],
        attention_head_dim=module.width // module.num_heads,
        cross_attention_dim=module.width,
        caption_channels=params["text_in"]["kernel"].shape[0],
    )


def _inputs(module: LTXVideo, config: Config) -> tuple:
    text = Text(example(1, config["caption_channels"]))
    return example(1, 1, 1, config["in_channels"]), example(), text


_SMALL = dict(
    num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=2
) | dict(in_channels=3, out_channels=3, caption_channels=5)
LTX_VIDEO = Published(
    DIFFUSERS,
    "LTXVideoTransformer3DModel",
    LTXVideo,
    entries=dict(
        in_channels=128,
        out_channels=Field("out_channels", 128, kind=int | None),
        patch_size=Only(1),
        patch_size_t=Only(1),
        num_attention_heads=Field("num_heads", 32),
        attention_head_dim=64,
        cross_attention_dim=2048,
        num_layers=Field("depth", 28),
        activation_fn=Only("gelu-approximate"),
        qk_norm=Only("rms_norm_across_heads"),
        norm_elementwise_affine=Only(False),
        norm_eps=Only(1e-6),
        caption_channels=4096,
        attention_bias=Only(True),
        attention_out_bias=Only(True),
    ),
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    invert=lambda module, *pair: to_torch(*pair),
    examples=(_SMALL, _SMALL | dict(num_attention_heads=1, attention_head_dim=16, out_channels=4)),
)
PUBLISHED = (LTX_VIDEO,)
