"""Stable Diffusion 3 and 3.5's transformer as diffusers publishes it."""

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from genjax.models.transformers.mmdit import MMDiT, axis_embedding
from genjax.nn import Text
from genjax.pretrained.configuration import Field, Natural, Value, expect
from genjax.pretrained.layouts import Names, layer_names, prefixed
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

TABLE = "pos_embed.pos_embed"  # of positions: fixed, but stored in the files
_MLP = dict(linear_in="linear_1", linear_out="linear_2")
EMBEDDINGS = (  # FLUX has these too
    prefixed("time_embedding/", "time_text_embed.timestep_embedder.", _MLP)
    | prefixed("pooled_embedding/", "time_text_embed.text_embedder.", _MLP)
    | prefixed("guidance_embedding/", "time_text_embed.guidance_embedder.", _MLP)
    | dict(text_embedding="context_embedder", head="proj_out")
    | {"modulation/dense": "norm_out.linear"}
)
HEADS = dict(query="to_q", key="to_k", value="to_v", query_norm="norm_q", key_norm="norm_k")
_TEXT_HEADS = dict(query="add_q_proj", key="add_k_proj", value="add_v_proj") | dict(
    query_norm="norm_added_q", key_norm="norm_added_k"
)
TWO_STREAMS = (  # a block of FLUX has these too
    prefixed("image_heads/", "attn.", HEADS)
    | prefixed("text_heads/", "attn.", _TEXT_HEADS)
    | dict(image_mlp_in="ff.net.0.proj", image_mlp_out="ff.net.2")
    | dict(text_mlp_in="ff_context.net.0.proj", text_mlp_out="ff_context.net.2")
    | dict(image_projection="attn.to_out.0", text_projection="attn.to_add_out")
    | {"image_modulation/dense": "norm1.linear", "text_modulation/dense": "norm1_context.linear"}
)
_DUAL = dict(dual_projection="attn2.to_out.0")
_BLOCK = TWO_STREAMS | prefixed("dual_heads/", "attn2.", HEADS) | _DUAL


def _names(module: MMDiT, tensors: Collection[str]) -> Callable[[str], Names]:
    """Return the tensors' names; the file has one count through all runs of our blocks."""
    last, layers = module.depth - 1, {"position_table": TABLE, "patch_embedding": "pos_embed.proj"}
    for ours, published in _BLOCK.items():
        for run, indices in module.runs.items():
            layers[f"{run}/{ours}"] = [f"transformer_blocks.{i}.{published}" for i in indices]
        layers[f"last_block/{ours}"] = f"transformer_blocks.{last}.{published}"
    return layer_names(EMBEDDINGS | layers)


def position_table(module: MMDiT, dtype: Any) -> np.ndarray:
    """Return the table of positions that belongs to a module."""
    size, half = module.max_size, module.width // 2
    positions = module.position_start + module.position_step * np.arange(size)
    axis = axis_embedding(positions, half).astype(dtype)
    table = np.empty((size, size, 2, half), dtype)
    table[:, :, 0], table[:, :, 1] = axis[None], axis[:, None]
    return table.reshape(1, size**2, -1)


def positions_of(table: np.ndarray, max_size: int, width: int) -> dict[str, float]:
    """Return the first position and the step of a table; published tables differ from new ones.

    The phases of the sinusoids tell an axis's positions. The slowest sinusoid has a longer period
    than any table, and each faster one refines the position. Then the positions are rounded to
    fractions.

    Raises:
        ValueError: the table does not hold evenly spaced positions.
    """
    kind = f"{max_size}×{max_size} evenly spaced positions with {width} features"
    fault = f"{TABLE} is no table of {kind}"
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
    # Sines are at most 1 and rounded to the file's type; float32 angles up to 100 err by 6e-6.
    tolerance = float(jnp.finfo(table.dtype).eps) + 1e-5
    for row, (columns, rows) in enumerate(table.swapaxes(1, 2)):
        for half, expected in ((columns, axis), (rows, axis[row])):
            if not np.all(np.abs(half.astype(np.float32) - expected) <= tolerance):
                raise ValueError(f"{fault}: row {row} does not continue the first")
    return dict(position_start=start, position_step=step)


def _set_positions(module: MMDiT, tensors: Mapping[str, np.ndarray]) -> MMDiT:
    if TABLE not in tensors:
        raise ValueError(f"the file lacks {TABLE}")
    return module.clone(**positions_of(tensors[TABLE], module.max_size, module.width))


def _add_table(module: MMDiT, variables: PyTree) -> PyTree:
    params = variables["params"]
    table = position_table(module, params["head"]["kernel"].dtype)
    return {"params": {**params, "position_table": table}}


def _build(config: Config) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    expect(config, "caption_projection_dim", width)
    dual_layers, depth = config["dual_attention_layers"], config["num_layers"]
    if not set(dual_layers) <= set(range(depth)):
        raise ValueError(
            f"dual_attention_layers={dual_layers} is not supported; there are {depth} layers"
        )
    return dict(width=width, dual_layers=tuple(sorted(set(dual_layers))))


def text_entries(module: nn.Module, variables: PyTree) -> dict[str, Any]:
    """Return the sizes of a network's text, from its parameters.

    Raises:
        ValueError: the network scales time in another way than diffusers, or takes no pooled text.
    """
    params = variables["params"]
    expect(vars(module), "time_scale", 1000.0)
    if "pooled_embedding" not in params:
        raise ValueError(f"the class needs pooled text; got parameters of {', '.join(params)}")
    return dict(
        joint_attention_dim=params["text_embedding"]["kernel"].shape[0],
        pooled_projection_dim=params["pooled_embedding"]["linear_in"]["kernel"].shape[0],
    )


def text_inputs(config: Config) -> Text:
    """Return the shortest text."""
    return Text(example(1, config["joint_attention_dim"]), example(config["pooled_projection_dim"]))


def _config(module: MMDiT, variables: PyTree) -> dict[str, Any]:
    entries = text_entries(module, variables)
    features = variables["params"]["patch_embedding"]["kernel"].shape[0]
    channels = features // module.patch_size**2
    return entries | dict(
        sample_size=128,
        in_channels=channels,
        attention_head_dim=module.width // module.num_heads,
        caption_projection_dim=module.width,
        out_channels=module.out_channels or channels,
        dual_attention_layers=list(module.dual_layers),
    )


def _inputs(module: MMDiT, config: Config) -> tuple:
    latents = example(module.patch_size, module.patch_size, config["in_channels"])
    return latents, example(), text_inputs(config)


_SMALL = (
    dict(num_layers=4, num_attention_heads=2, attention_head_dim=8, caption_projection_dim=16)
    | dict(joint_attention_dim=6, pooled_projection_dim=5, pos_embed_max_size=6)
    | dict(in_channels=3, out_channels=6)
)
SD3 = Published(
    DIFFUSERS,
    "SD3Transformer2DModel",
    MMDiT,
    entries=dict(
        patch_size=Field("patch_size", 2),
        in_channels=16,
        num_layers=Field("depth", 18),
        attention_head_dim=64,
        num_attention_heads=Field("num_heads", 18),
        joint_attention_dim=4096,
        caption_projection_dim=1152,
        pooled_projection_dim=2048,
        out_channels=Field("out_channels", 16, kind=int | None),
        pos_embed_max_size=Field("max_size", 96),
        dual_attention_layers=Value([], list[Natural]),
        qk_norm=Field("qk_norm", None, {None: False, "rms_norm": True}),
    ),
    unused=("sample_size",),  # pipelines use it
    build=_build,
    config=_config,
    inputs=_inputs,
    names=_names,
    adapt=_set_positions,
    pack=_add_table,
    ignore=lambda name, tensor: name == TABLE,
    examples=(_SMALL, _SMALL | dict(dual_attention_layers=[0, 2, 3], qk_norm="rms_norm")),
)
PUBLISHED = (SD3,)
