"""The transformers of Wan 2.1 and 2.2 as diffusers publishes them.

The outputs equal those of diffusers at `timestep` = 1000·t. Its image-conditioned networks take
prompts of 512 tokens, and the images' tokens of first and last frame as two examples.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.transformers.wan import Wan
from genjax.nn import Text
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

_ATTENTION = dict(query="to_q", key="to_k", value="to_v", projection="to_out.0") | dict(
    query_norm="norm_q", key_norm="norm_k"
)
_IMAGE = dict(image_key="add_k_proj", image_value="add_v_proj", image_key_norm="norm_added_k")
_BLOCK = (
    {"modulation/table": "scale_shift_table", "mlp_in": "ffn.net.0.proj", "mlp_out": "ffn.net.2"}
    | {"cross_attention/norm": "norm2"}
    | prefixed("self_attention/", "attn1.", _ATTENTION)
    | prefixed("cross_attention/", "attn2.", _ATTENTION | _IMAGE)
)
_EMBEDDINGS = (
    {"time_embedding/linear_in": "time_embedder.linear_1", "modulation": "time_proj"}
    | {"time_embedding/linear_out": "time_embedder.linear_2"}
    | dict(text_in="text_embedder.linear_1", text_out="text_embedder.linear_2")
    | {"image_embedding/norm_in": "image_embedder.norm1"}
    | {"image_embedding/linear_in": "image_embedder.ff.net.0.proj"}
    | {"image_embedding/linear_out": "image_embedder.ff.net.2"}
    | {"image_embedding/norm_out": "image_embedder.norm2"}
    | {"image_embedding/positions": "image_embedder.pos_embed"}
)
_LAYERS = (
    prefixed("blocks/", "blocks.{}.", _BLOCK)
    | prefixed("", "condition_embedder.", _EMBEDDINGS)
    | {"patch_embedding": "patch_embedding", "head": "proj_out"}
    | {"head_modulation/table": "scale_shift_table"}
)
_PATCHES = "params/patch_embedding/kernel"
_TABLES = ("/table", "/positions")  # with an axis of one example in diffusers


def _convert(module: Wan, variable: str, tensor: np.ndarray) -> np.ndarray:
    if variable == _PATCHES:
        return tensor.transpose(2, 3, 4, 1, 0).reshape(-1, len(tensor))
    return tensor[0] if variable.endswith(_TABLES) else from_torch(variable, tensor)


def _invert(module: Wan, variable: str, array: np.ndarray) -> np.ndarray:
    if variable == _PATCHES:
        patches = array.reshape(*module.patch_size, -1, array.shape[-1])
        return patches.transpose(4, 3, 0, 1, 2)
    return array[None] if variable.endswith(_TABLES) else to_torch(variable, array)


def _build(config: Config) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    takes_image = config["image_dim"] is not None
    expect(config, "added_kv_proj_dim", width if takes_image else None)
    if not takes_image:
        expect(config, "pos_embed_seq_len", None)
    if len(config["patch_size"]) != 3:
        raise ValueError(f"patch_size={config['patch_size']} is not frames, rows and columns")
    return dict(width=width, takes_image=takes_image)


def _config(module: Wan, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "time_scale", 1000.0)
    params = variables["params"]
    features = lambda layer: layer["kernel"].shape[0]
    image = params["image_embedding"]["linear_in"] if module.takes_image else None
    return dict(
        attention_head_dim=module.width // module.num_heads,
        in_channels=features(params["patch_embedding"]) // math.prod(module.patch_size),
        text_dim=features(params["text_in"]),
        image_dim=image and features(image),
        added_kv_proj_dim=module.width if module.takes_image else None,
    )


def _inputs(module: Wan, config: Config) -> tuple:
    image = None
    if module.takes_image:
        image = example(module.image_positions or 1, config["image_dim"])
    latents = example(*module.patch_size, config["in_channels"])
    return latents, example(), Text(example(1, config["text_dim"])), image


_SMALL = dict(num_attention_heads=2, attention_head_dim=8, ffn_dim=20, num_layers=2, text_dim=7)
WAN = Published(
    DIFFUSERS,
    "WanTransformer3DModel",
    Wan,
    entries=dict(
        patch_size=Field("patch_size", [1, 2, 2], kind=list[int]),
        num_attention_heads=Field("num_heads", 40),
        attention_head_dim=128,
        in_channels=16,
        out_channels=Field("out_channels", 16, kind=int | None),
        text_dim=4096,
        freq_dim=Only(256),
        ffn_dim=Field("mlp_features", 13_824),
        num_layers=Field("depth", 40),
        cross_attn_norm=Only(True),
        qk_norm=Only("rms_norm_across_heads"),
        eps=Only(1e-6),
        image_dim=Value(None, int | None),
        added_kv_proj_dim=Value(None, int | None),
        pos_embed_seq_len=Field("image_positions", None, kind=int | None),
    ),
    unused=["rope_max_seq_len"],  # the table of positions there; here they are computed
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    convert=_convert,
    invert=_invert,
    ignore=lambda name, tensor: "norm_added_q" in name,  # no version of the library uses it
    examples=(
        _SMALL | dict(in_channels=5, out_channels=None, patch_size=[2, 1, 3]),
        _SMALL | dict(image_dim=6, added_kv_proj_dim=16, pos_embed_seq_len=4),
    ),
)
PUBLISHED = (WAN,)
