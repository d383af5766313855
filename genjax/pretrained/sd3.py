"""Stable Diffusion 3 and 3.5's transformer as diffusers writes it (`SD3Transformer2DModel`), and back."""

import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.transformers.mmdit import MMDiT, axis_embedding
from genjax.nn import Text
from genjax.pretrained.configuration import expect, read_config
from genjax.pretrained.safetensors_io import (
    from_torch,
    load_variables,
    open_tensors,
    save_variables,
    to_torch,
)

CLASS_NAME = "SD3Transformer2DModel"
TABLE = "pos_embed.pos_embed"  # of positions: fixed, yet in the files
# What a configuration means that does not name it; the size of samples is the pipelines', not the network's.
_DEFAULTS = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=18,
    attention_head_dim=64,
    num_attention_heads=18,
    joint_attention_dim=4096,
    caption_projection_dim=1152,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=96,
    dual_attention_layers=[],
    qk_norm=None,
)
# Theirs for our layers.
_LAYERS = {
    "patch_embedding": "pos_embed.proj",
    "time_embedding/linear_in": "time_text_embed.timestep_embedder.linear_1",
    "time_embedding/linear_out": "time_text_embed.timestep_embedder.linear_2",
    "pooled_embedding/linear_in": "time_text_embed.text_embedder.linear_1",
    "pooled_embedding/linear_out": "time_text_embed.text_embedder.linear_2",
    "text_embedding": "context_embedder",
    "modulation/dense": "norm_out.linear",
    "head": "proj_out",
}
_BLOCK = {
    "image_modulation/dense": "norm1.linear",
    "image_heads/query": "attn.to_q",
    "image_heads/key": "attn.to_k",
    "image_heads/value": "attn.to_v",
    "image_heads/query_norm": "attn.norm_q",
    "image_heads/key_norm": "attn.norm_k",
    "image_projection": "attn.to_out.0",
    "image_mlp_in": "ff.net.0.proj",
    "image_mlp_out": "ff.net.2",
    "text_modulation/dense": "norm1_context.linear",
    "text_heads/query": "attn.add_q_proj",
    "text_heads/key": "attn.add_k_proj",
    "text_heads/value": "attn.add_v_proj",
    "text_heads/query_norm": "attn.norm_added_q",
    "text_heads/key_norm": "attn.norm_added_k",
    "text_projection": "attn.to_add_out",
    "text_mlp_in": "ff_context.net.0.proj",
    "text_mlp_out": "ff_context.net.2",
    "dual_heads/query": "attn2.to_q",
    "dual_heads/key": "attn2.to_k",
    "dual_heads/value": "attn2.to_v",
    "dual_heads/query_norm": "attn2.norm_q",
    "dual_heads/key_norm": "attn2.norm_k",
    "dual_projection": "attn2.to_out.0",
}


def renaming(module: MMDiT) -> Callable[[str], str | list[str]]:
    last = module.depth - 1
    runs = dict(dual_blocks=range(module.dual_depth), blocks=range(module.dual_depth, last))

    def rename(variable: str) -> str | list[str]:
        layer, leaf = variable.removeprefix("params/").rsplit("/", 1)
        leaf = "bias" if leaf == "bias" else "weight"
        run, _, part = layer.partition("/")
        if run in runs:
            return [f"transformer_blocks.{i}.{_BLOCK[part]}.{leaf}" for i in runs[run]]
        if run == "last_block":
            return f"transformer_blocks.{last}.{_BLOCK[part]}.{leaf}"
        return f"{_LAYERS[layer]}.{leaf}"

    return rename


def convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Patches are made by a convolution there, by a matrix of features (row, column, channel) here."""
    if variable == "params/patch_embedding/kernel":
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return from_torch(variable, tensor)


def _table(module: MMDiT, dtype: Any) -> np.ndarray:
    size, half = module.max_size, module.width // 2
    positions = module.position_start + module.position_step * np.arange(size)
    axis = axis_embedding(positions, half).astype(dtype)
    table = np.empty((size, size, 2, half), dtype)
    table[:, :, 0], table[:, :, 1] = axis[None], axis[:, None]
    return table.reshape(1, size**2, -1)


def _positions(table: np.ndarray, max_size: int, width: int) -> dict[str, float]:
    """First position and step of a table: published ones are not those that diffusers makes a new network with.

    An axis' positions are read off the phases of its sinusoids, from the slowest, whose period is longer than any table, to
    the fastest, each of which says more exactly what the ones before left open. Then they are rounded to fractions.

    Raises:
        ValueError: the table is not one of evenly spaced positions.
    """
    fault = f"{TABLE} is no table of {max_size}×{max_size} evenly spaced positions with {width} features"
    if table.shape != (1, max_size**2, width):
        raise ValueError(f"{fault}: its shape is {table.shape}")
    table = table.reshape(max_size, max_size, 2, -1)
    sines, cosines = np.split(np.asarray(table[0, :, 0], np.float64), 2, axis=1)
    positions, count = np.zeros(max_size), sines.shape[1]
    for i in reversed(range(count)):
        frequency = 10_000 ** (-i / count)
        rest = np.arctan2(sines[:, i], cosines[:, i]) - frequency * positions
        positions += ((rest + np.pi) % (2 * np.pi) - np.pi) / frequency
    step, start = (
        float(Fraction(value).limit_denominator(max_size))
        for value in np.polyfit(np.arange(max_size), positions, 1)
    )
    axis = axis_embedding(start + step * np.arange(max_size), width // 2)
    # Sines are at most 1 and rounded to the file's type; angles up to 100 in float32 are wrong by 6e-6.
    tolerance = float(jnp.finfo(table.dtype).eps) + 1e-5
    for row, (columns, rows) in enumerate(table.swapaxes(1, 2)):
        for half, expected in ((columns, axis), (rows, axis[row])):
            if not np.all(np.abs(half.astype(np.float32) - expected) <= tolerance):
                raise ValueError(f"{fault}: row {row} does not continue the first")
    return dict(position_start=start, position_step=step)


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[MMDiT, Any]:
    """The module and its variables from a folder written by `save_pretrained` of diffusers' `SD3Transformer2DModel`.

    Args:
        abstract: what to make of the pytree of `jax.ShapeDtypeStruct` before reading: other types, shardings.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; the table of
            positions is missing or not one that can be computed; or one that lists all missing, extra and misshapen
            tensors.
    """
    config = read_config(folder, CLASS_NAME, _DEFAULTS)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    dual_depth = len(config["dual_attention_layers"])
    expect(config, "qk_norm", None, "rms_norm")
    expect(config, "caption_projection_dim", width)
    expect(config, "dual_attention_layers", list(range(min(dual_depth, config["num_layers"] - 1))))
    table = open_tensors(folder).get(TABLE)
    if table is None:
        raise ValueError(f"{folder} lacks {TABLE}")
    module = MMDiT(
        patch_size=config["patch_size"],
        width=width,
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        dual_depth=dual_depth,
        qk_norm=config["qk_norm"] is not None,
        max_size=config["pos_embed_max_size"],
        out_channels=config["out_channels"],
        **_positions(table, config["pos_embed_max_size"], width),
    )
    example = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    expected = jax.eval_shape(
        lambda key, x, t, tokens, pooled: module.init(key, x, t, Text(tokens, pooled)),
        jax.random.key(0),
        example(module.patch_size, module.patch_size, config["in_channels"]),
        example(),
        example(1, config["joint_attention_dim"]),
        example(config["pooled_projection_dim"]),
    )
    ignore = lambda name, tensor: name == TABLE
    return module, load_variables(folder, abstract(expected), renaming(module), convert, ignore)


def save(folder: str | os.PathLike, module: MMDiT, variables: Any, sample_size: int = 128) -> None:
    """Writes a folder that diffusers' `SD3Transformer2DModel.from_pretrained` and `load` open.

    Args:
        sample_size: side of the latents that diffusers' pipelines make where not told otherwise.

    Raises:
        ValueError: the network is one that diffusers' class cannot be: of another time scale, or without pooled text.
    """
    params = variables["params"]
    if module.time_scale != 1000.0 or "pooled_embedding" not in params:
        raise ValueError(
            f"{CLASS_NAME} has time_scale=1000.0 and pooled text; got time_scale={module.time_scale} and parameters of "
            f"{', '.join(params)}"
        )
    kernel = params["patch_embedding"]["kernel"]
    channels = kernel.shape[0] // module.patch_size**2
    config = dict(
        _class_name=CLASS_NAME,
        sample_size=sample_size,
        patch_size=module.patch_size,
        in_channels=channels,
        num_layers=module.depth,
        attention_head_dim=module.width // module.num_heads,
        num_attention_heads=module.num_heads,
        joint_attention_dim=params["text_embedding"]["kernel"].shape[0],
        caption_projection_dim=module.width,
        pooled_projection_dim=params["pooled_embedding"]["linear_in"]["kernel"].shape[0],
        out_channels=module.out_channels or channels,
        pos_embed_max_size=module.max_size,
        dual_attention_layers=list(range(module.dual_depth)),
        qk_norm="rms_norm" if module.qk_norm else None,
    )
    rename = renaming(module)

    def invert(variable: str, array: np.ndarray) -> np.ndarray:
        if variable == "params/patch_embedding/kernel":
            sides = module.patch_size, module.patch_size
            return array.reshape(*sides, channels, -1).transpose(3, 2, 0, 1)
        return to_torch(variable, array)

    save_variables(
        folder,
        config,
        dict(params=params, table=_table(module, kernel.dtype)),
        lambda variable: TABLE if variable == "table" else rename(variable),
        invert,
    )
