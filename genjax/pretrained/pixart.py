"""PixArt-α and -Σ as diffusers publishes them.

The outputs equal those of diffusers at `timestep` = 1000·t, `resolution` = `size` and
`aspect_ratio` = height/width.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text
from genjax.pretrained import transformer_2d
from genjax.pretrained.configuration import Only, Value, expect
from genjax.pretrained.layouts import layer_names, prefixed
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

_BLOCK = (
    {"modulation/table": "scale_shift_table", "mlp_in": "ff.net.0.proj", "mlp_out": "ff.net.2"}
    | prefixed("self_attention/", "attn1.", transformer_2d.QUERY_KEY_VALUE)
    | prefixed("cross_attention/", "attn2.", transformer_2d.QUERY_KEY_VALUE)
)
_EMBEDDING, _MLP = "adaln_single.emb.", dict(linear_in="linear_1", linear_out="linear_2")
_LAYERS = (
    prefixed("blocks/", "transformer_blocks.{}.", _BLOCK)
    | prefixed("time_embedding/", _EMBEDDING + "timestep_embedder.", _MLP)
    | prefixed("size_embedding/", _EMBEDDING + "resolution_embedder.", _MLP)
    | prefixed("aspect_ratio_embedding/", _EMBEDDING + "aspect_ratio_embedder.", _MLP)
    | {
        "patch_embedding": "pos_embed.proj",
        "modulation": "adaln_single.linear",
        "text_in": "caption_projection.linear_1",
        "text_out": "caption_projection.linear_2",
        "head_modulation/table": "scale_shift_table",
        "head": "proj_out",
    }
)


def _build(config: Config) -> dict[str, Any]:
    fields, side = transformer_2d.build(config), config["sample_size"]
    expect(config, "cross_attention_dim", fields["width"])
    if config["caption_channels"] is None:
        raise ValueError("caption_channels=None is not supported: text is projected to the width")
    sized, scale = config["use_additional_conditions"], config["interpolation_scale"]
    return fields | dict(
        interpolation_scale=float(max(side // 64, 1) if scale is None else scale),
        size_conditioning=side == 128 if sized is None else sized,
    )


def _config(module: PixArt, variables: PyTree) -> dict[str, Any]:
    return transformer_2d.entries_of(module, variables) | dict(
        norm_type="ada_norm_single",
        cross_attention_dim=module.width,
        caption_channels=variables["params"]["text_in"]["kernel"].shape[0],
        interpolation_scale=module.interpolation_scale,
        use_additional_conditions=module.size_conditioning,
    )


def _inputs(module: PixArt, config: Config) -> tuple:
    side = config["sample_size"]
    text = Text(example(1, config["caption_channels"]))
    size = jnp.ones((1, 2)) if module.size_conditioning else None
    return example(side, side, config["in_channels"]), example(), text, size


_SMALL = dict(num_attention_heads=3, attention_head_dim=4, num_layers=2, cross_attention_dim=12)
PIXART = Published(
    DIFFUSERS,
    "PixArtTransformer2DModel",
    PixArt,
    alias=transformer_2d.former_class("ada_norm_single"),
    entries=transformer_2d.ENTRIES
    | dict(
        norm_type=Only("ada_norm_single"),
        norm_eps=Only(1e-6),
        out_channels=Value(8, int | None),
        cross_attention_dim=1152,
        sample_size=128,
        interpolation_scale=Value(None, float | None),
        use_additional_conditions=Value(None, bool | None),
        caption_channels=Value(None, int | None),
    ),
    unused=[*transformer_2d.UNUSED, "num_embeds_ada_norm"],
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    examples=(
        _SMALL | dict(caption_channels=9, sample_size=128),
        _SMALL | dict(caption_channels=7, sample_size=9, patch_size=3, in_channels=5),
    ),
)
PUBLISHED = (PIXART,)
