"""FLUX.1 as diffusers publishes it: dev, schnell, and Fill, whose input has more channels."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.transformers.flux import MLP_RATIO, Flux
from genjax.pretrained.configuration import Field, Natural, Only, Value, expect
from genjax.pretrained.layouts import from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example
from genjax.pretrained.sd3 import EMBEDDINGS, HEADS, TWO_STREAMS, text_entries, text_inputs

PATCH_SIZE = 2  # diffusers' pipeline makes patches, and its network takes them
_ONE_STREAM = prefixed("heads/", "attn.", HEADS) | {
    "modulation/dense": "norm.linear",
    "mlp_in": "proj_mlp",
    "projection": "proj_out",  # of the attention's output, followed by the feed-forward layer's
    "mlp_out": "proj_out",
}
_LAYERS = (
    EMBEDDINGS
    | {"patch_embedding": "x_embedder"}
    | prefixed("double_blocks/", "transformer_blocks.{}.", TWO_STREAMS)
    | prefixed("single_blocks/", "single_transformer_blocks.{}.", _ONE_STREAM)
)
# The axis of a patch's features: (channel, row, column) in diffusers, (row, column, channel) here.
_PATCHES = {"params/patch_embedding/kernel": 0, "params/head/kernel": 1, "params/head/bias": 0}
_ATTENDED, _MLP = (f"params/single_blocks/{name}/kernel" for name in ("projection", "mlp_out"))


def _reorder(variable: str, array: np.ndarray, sizes: tuple, axis: int) -> np.ndarray:
    """Split the features of a patch into three axes of `sizes`, and move one end to the other."""
    if variable not in _PATCHES:
        return array
    features = np.moveaxis(array, _PATCHES[variable], 0)
    apart = features.reshape(*sizes, *features.shape[1:])
    moved = np.moveaxis(apart, axis, 2 - axis).reshape(features.shape)
    return np.moveaxis(moved, 0, _PATCHES[variable])


def _convert(module: Flux, variable: str, tensor: np.ndarray) -> np.ndarray:
    array = from_torch(variable, tensor)
    attended = len(array) // (1 + MLP_RATIO)
    if variable == _ATTENDED:
        return array[:attended]
    if variable == _MLP:
        return array[attended:]
    return _reorder(variable, array, (-1, PATCH_SIZE, PATCH_SIZE), axis=0)


def _invert(module: Flux, variable: str, array: np.ndarray) -> np.ndarray:
    return to_torch(variable, _reorder(variable, array, (PATCH_SIZE, PATCH_SIZE, -1), axis=2))


def _pack(module: Flux, variables: PyTree) -> PyTree:
    """Join the two kernels that are one tensor in diffusers."""
    params = variables["params"]
    if "single_blocks" not in params:
        return variables
    blocks = dict(params["single_blocks"])
    layers = blocks["projection"], blocks.pop("mlp_out")
    kernel = np.concatenate([np.asarray(layer["kernel"]) for layer in layers], axis=1)
    blocks["projection"] = {**blocks["projection"], "kernel": kernel}
    return {"params": {**params, "single_blocks": blocks}}


def _build(config: Config) -> dict[str, Any]:
    expect(config, "attention_head_dim", sum(config["axes_dims_rope"]))
    for name in ("in_channels", "out_channels"):
        if (config[name] or 0) % PATCH_SIZE**2:
            raise ValueError(
                f"{name}={config[name]} is not a multiple of {PATCH_SIZE**2}, the latents per patch"
            )
    return dict(out_channels=config["out_channels"] and config["out_channels"] // PATCH_SIZE**2)


def _config(module: Flux, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "patch_size", PATCH_SIZE)
    return text_entries(module, variables) | dict(
        in_channels=variables["params"]["patch_embedding"]["kernel"].shape[0],
        out_channels=module.out_channels and module.out_channels * PATCH_SIZE**2,
        attention_head_dim=sum(module.rotary_features),
    )


def _inputs(module: Flux, config: Config) -> tuple:
    latents = example(PATCH_SIZE, PATCH_SIZE, config["in_channels"] // PATCH_SIZE**2)
    return latents, example(), text_inputs(config), example() if module.takes_guidance else None


_SMALL = (
    dict(num_layers=1, num_attention_heads=3, attention_head_dim=8, axes_dims_rope=[2, 2, 4])
    | dict(num_single_layers=2, joint_attention_dim=6, pooled_projection_dim=5)
    | dict(in_channels=12)
)
FLUX = Published(
    DIFFUSERS,
    "FluxTransformer2DModel",
    Flux,
    entries=dict(
        patch_size=Only(1),
        in_channels=64,
        out_channels=Value(None, int | None),
        num_layers=Field("num_double_blocks", 19, kind=Natural),
        num_single_layers=Field("num_single_blocks", 38, kind=Natural),
        attention_head_dim=128,
        num_attention_heads=Field("num_heads", 24),
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=Field("takes_guidance", False),
        axes_dims_rope=Field("rotary_features", [16, 56, 56]),
    ),
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    convert=_convert,
    invert=_invert,
    pack=_pack,
    examples=(_SMALL, _SMALL | dict(guidance_embeds=True, out_channels=8, num_single_layers=0)),
)
PUBLISHED = (FLUX,)
