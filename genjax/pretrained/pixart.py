"""PixArt-α and -Σ in the folders that diffusers writes (`PixArtTransformer2DModel`)."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import load_variables, save_variables
from genjax.pretrained.transformer_2d import (
    LEAVES,
    convert,
    invert,
    read_transformer_config,
    transformer_config,
)

_CLASS, _NORM = "PixArtTransformer2DModel", "ada_norm_single"
_DEFAULTS = dict(
    out_channels=8,
    cross_attention_dim=1152,
    sample_size=128,
    norm_eps=1e-6,
    interpolation_scale=None,
    use_additional_conditions=None,
    caption_channels=None,
)
_EMBEDDING = "adaln_single.emb."
_LAYERS = {
    "patch_embedding": "pos_embed.proj",
    "time_embedding": _EMBEDDING + "timestep_embedder",
    "size_embedding": _EMBEDDING + "resolution_embedder",
    "aspect_ratio_embedding": _EMBEDDING + "aspect_ratio_embedder",
    "linear_in": "linear_1",
    "linear_out": "linear_2",
    "modulation": "adaln_single.linear",
    "text_in": "caption_projection.linear_1",
    "text_out": "caption_projection.linear_2",
    "head": "proj_out",
}
_LAYERS_OF_BLOCKS = {
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "projection": "to_out.0",
    "mlp_in": "ff.net.0.proj",
    "mlp_out": "ff.net.2",
}


def _rename(variable: str) -> str:
    _, *layers, leaf = variable.split("/")
    if leaf == "table":
        return "transformer_blocks.{}.scale_shift_table" if layers[0] == "blocks" else "scale_shift_table"
    if layers[0] == "blocks":
        words = ["transformer_blocks.{}", *(_LAYERS_OF_BLOCKS[layer] for layer in layers[1:])]
    else:
        words = [_LAYERS[layer] for layer in layers]
    return ".".join([*words, LEAVES[leaf]])


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[PixArt, Any]:
    """The module and its variables from a folder of `config.json` and safetensors.

    Its outputs are diffusers' of `timestep` = 1000·t, `resolution` = `size` and `aspect_ratio` =
    height/width.

    Args:
        abstract: applied to the pytree of `jax.ShapeDtypeStruct` before reading: to change types or add
            shardings.

    Raises:
        ValueError: an entry of the configuration that is not known or not supported, by name; or one that
            lists all missing, extra and misshapen tensors.
    """
    config = read_transformer_config(folder, _CLASS, _NORM, _DEFAULTS)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    expect(config, "norm_eps", 1e-6)
    expect(config, "cross_attention_dim", width)
    if config["caption_channels"] is None:
        raise ValueError("caption_channels=None is not supported: text is always projected to the width")
    side = config["sample_size"]
    told, scale = config["use_additional_conditions"], config["interpolation_scale"]
    module = PixArt(
        patch_size=config["patch_size"],
        width=width,
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        base_size=side // config["patch_size"],
        interpolation_scale=float(max(side // 64, 1) if scale is None else scale),
        size_conditioning=side == 128 if told is None else told,
        out_channels=config["out_channels"] or config["in_channels"],
    )

    def init():
        images = jnp.zeros((1, side, side, config["in_channels"]))
        text = Text(jnp.zeros((1, 1, config["caption_channels"])))
        size = jnp.ones((1, 2)) if module.size_conditioning else None
        return module.init(jax.random.key(0), images, jnp.zeros(1), text, size)

    expected = abstract(jax.eval_shape(init))
    return module, load_variables(folder, expected, _rename, convert)


def save(folder: str | os.PathLike, module: PixArt, variables: Any) -> None:
    """Writes what diffusers' `PixArtTransformer2DModel.from_pretrained` and `load` read.

    Raises:
        ValueError: the module has what diffusers' cannot have.
    """
    config = transformer_config(
        _CLASS,
        _NORM,
        module,
        variables,
        norm_eps=1e-6,
        cross_attention_dim=module.width,
        caption_channels=variables["params"]["text_in"]["kernel"].shape[0],
        interpolation_scale=module.interpolation_scale,
        use_additional_conditions=module.size_conditioning,
    )
    save_variables(folder, config, variables, _rename, functools.partial(invert, module.patch_size))
