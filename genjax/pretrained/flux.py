"""FLUX.1 as diffusers writes it (`FluxTransformer2DModel`; dev, schnell, and Fill with more input channels),
and back."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from genjax.models.transformers.flux import MLP_RATIO, Flux
from genjax.nn import Text
from genjax.pretrained.configuration import expect, read_config
from genjax.pretrained.safetensors_io import from_torch, load_variables, save_variables, to_torch

CLASS_NAME = "FluxTransformer2DModel"
PATCH_SIZE = 2  # theirs is given patches, which its pipeline makes
_DEFAULTS = dict(
    patch_size=1,
    in_channels=64,
    out_channels=None,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=False,
    axes_dims_rope=[16, 56, 56],
)
# Theirs for our layers.
_LAYERS = {
    "patch_embedding": "x_embedder",
    "text_embedding": "context_embedder",
    "modulation/dense": "norm_out.linear",
    "head": "proj_out",
}
for _ours, _theirs in (("time", "timestep"), ("guidance", "guidance"), ("pooled", "text")):
    for _ours_end, _theirs_end in (("in", "1"), ("out", "2")):
        _LAYERS[f"{_ours}_embedding/linear_{_ours_end}"] = (
            f"time_text_embed.{_theirs}_embedder.linear_{_theirs_end}"
        )
_DOUBLE = {
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
}
_SINGLE = {
    "modulation/dense": "norm.linear",
    "heads/query": "attn.to_q",
    "heads/key": "attn.to_k",
    "heads/value": "attn.to_v",
    "heads/query_norm": "attn.norm_q",
    "heads/key_norm": "attn.norm_k",
    "mlp_in": "proj_mlp",
    "projection": "proj_out",  # of the attention's output and, after it, the feed-forward layer's
    "mlp_out": "proj_out",
}
_LAYERS |= {f"double_blocks/{ours}": f"transformer_blocks.{{}}.{theirs}" for ours, theirs in _DOUBLE.items()}
_LAYERS |= {
    f"single_blocks/{ours}": f"single_transformer_blocks.{{}}.{theirs}" for ours, theirs in _SINGLE.items()
}


def rename(variable: str) -> str:
    """The name of a variable's tensor, with "{}" for the layer of a stack."""
    layer, leaf = variable.removeprefix("params/").rsplit("/", 1)
    return f"{_LAYERS[layer]}.{'bias' if leaf == 'bias' else 'weight'}"


# Features of a patch are (channel, row, column) there and (row, column, channel) here.
_THEIR_ORDER, _OUR_ORDER = "(c p q)", "(p q c)"
_PATCHES = {
    "params/patch_embedding/kernel": "{} features",
    "params/head/kernel": "features {}",
    "params/head/bias": "{}",
}


def _reorder(variable: str, array: np.ndarray, old: str, new: str) -> np.ndarray:
    pattern = _PATCHES.get(variable)
    if pattern is None:
        return array
    return rearrange(array, f"{pattern.format(old)} -> {pattern.format(new)}", p=PATCH_SIZE, q=PATCH_SIZE)


_ATTENDED, _MLP = (f"params/single_blocks/{name}/kernel" for name in ("projection", "mlp_out"))


def convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """A variable's tensor, or its part of that, in our layout and order."""
    array = _reorder(variable, from_torch(variable, tensor), _THEIR_ORDER, _OUR_ORDER)
    if variable not in (_ATTENDED, _MLP):
        return array
    attended = len(array) // (1 + MLP_RATIO)
    return array[:attended] if variable == _ATTENDED else array[attended:]


def _invert(variable: str, array: np.ndarray) -> np.ndarray:
    return to_torch(variable, _reorder(variable, array, _OUR_ORDER, _THEIR_ORDER))


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[Flux, Any]:
    """The module and its variables from a folder that diffusers' `FluxTransformer2DModel` saved.

    Args:
        abstract: what to make of the pytree of `jax.ShapeDtypeStruct` before reading: other types, shardings.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; or one
            that lists all missing, extra and misshapen tensors.
    """
    config = read_config(folder, CLASS_NAME, _DEFAULTS)
    expect(config, "patch_size", 1)
    expect(config, "attention_head_dim", sum(config["axes_dims_rope"]))
    for name in ("in_channels", "out_channels"):
        if (config[name] or 0) % PATCH_SIZE**2:
            raise ValueError(
                f"{name}={config[name]} is no multiple of {PATCH_SIZE**2}, the latents of a patch"
            )
    channels = config["in_channels"] // PATCH_SIZE**2
    module = Flux(
        num_double_blocks=config["num_layers"],
        num_single_blocks=config["num_single_layers"],
        num_heads=config["num_attention_heads"],
        rotary_features=tuple(config["axes_dims_rope"]),
        takes_guidance=config["guidance_embeds"],
        out_channels=config["out_channels"] and config["out_channels"] // PATCH_SIZE**2,
    )
    example = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    expected = jax.eval_shape(
        lambda key, x, t, tokens, pooled, guidance: module.init(key, x, t, Text(tokens, pooled), guidance),
        jax.random.key(0),
        example(PATCH_SIZE, PATCH_SIZE, channels),
        example(),
        example(1, config["joint_attention_dim"]),
        example(config["pooled_projection_dim"]),
        example() if module.takes_guidance else None,
    )
    return module, load_variables(folder, abstract(expected), rename, convert)


def save(folder: str | os.PathLike, module: Flux, variables: Any) -> None:
    """Writes a folder that diffusers' `FluxTransformer2DModel.from_pretrained` and `load` open.

    Raises:
        ValueError: the network is one that diffusers' class cannot be: of another patch size or time scale,
            or without pooled text.
    """
    params = variables["params"]
    if module.patch_size != PATCH_SIZE or module.time_scale != 1000.0 or "pooled_embedding" not in params:
        raise ValueError(
            f"{CLASS_NAME} has patch_size={PATCH_SIZE}, time_scale=1000.0 and pooled text; got patch_size="
            f"{module.patch_size}, time_scale={module.time_scale} and parameters of {', '.join(params)}"
        )
    config = _DEFAULTS | dict(
        _class_name=CLASS_NAME,
        in_channels=params["patch_embedding"]["kernel"].shape[0],
        out_channels=module.out_channels and module.out_channels * PATCH_SIZE**2,
        num_layers=module.num_double_blocks,
        num_single_layers=module.num_single_blocks,
        attention_head_dim=sum(module.rotary_features),
        num_attention_heads=module.num_heads,
        joint_attention_dim=params["text_embedding"]["kernel"].shape[0],
        pooled_projection_dim=params["pooled_embedding"]["linear_in"]["kernel"].shape[0],
        guidance_embeds=module.takes_guidance,
        axes_dims_rope=list(module.rotary_features),
    )
    if "single_blocks" in params:
        blocks = dict(params["single_blocks"])
        kernels = [np.asarray(layer["kernel"]) for layer in (blocks["projection"], blocks.pop("mlp_out"))]
        blocks["projection"] = {**blocks["projection"], "kernel": np.concatenate(kernels, axis=1)}
        params = {**params, "single_blocks": blocks}
    save_variables(folder, config, {"params": params}, rename, _invert)
