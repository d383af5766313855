"""Wan 2.1's autoencoder as diffusers publishes it (`AutoencoderKLWan`)."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.pretrained.autoencoder_kl import one_of_each
from genjax.pretrained.safetensors_io import from_torch, load_variables, save_variables, to_torch

# Theirs for ours, where the words of a path differ: patterns of whole words.
_NAMES = {
    r"level_(\d+)_block_(\d+)": r"up_blocks.\1.resnets.\2",
    r"level_(\d+)_upsample": r"up_blocks.\1.upsamplers.0",
    r"middle": "mid_block",
    r"block_(\d+)": r"resnets.\1",
    r"attention": "attentions.0",
    r"qkv": "to_qkv",
    r"projection": "proj",
    r"shortcut": "conv_shortcut",
    r"spatial": "resample.1",
    r"temporal": "time_conv",
    r"scale": "gamma",
    r"kernel": "weight",
}
# What our module has no other value of; absent where diffusers had no such entry when the file was written.
_FIXED = {
    "_class_name": "AutoencoderKLWan",
    "attn_scales": [],
    "decoder_base_dim": None,
    "dropout": 0.0,
    "is_residual": False,  # Wan 2.2's
    "patch_size": None,  # Wan 2.2's
}


def _rename(variable: str, blocks: int) -> str:
    words = variable.split("/")[1:]  # less the collection
    if words[0] == "encoder":  # whose blocks they count through all levels
        flat = lambda level, index: f"down_blocks.{int(level) * (blocks + 1) + int(index)}"
        words[1] = re.sub(r"^level_(\d+)_block_(\d+)$", lambda match: flat(*match.groups()), words[1])
        words[1] = re.sub(r"^level_(\d+)_downsample$", lambda match: flat(match[1], blocks), words[1])
    for pattern, name in _NAMES.items():
        words = [re.sub(f"^{pattern}$", name, word) for word in words]
    return ".".join(words)


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Theirs are channel-first, `[out, in, …]`, and convolve where we multiply by a matrix."""
    if not variable.endswith("kernel"):
        return tensor.reshape(-1)
    if max(tensor.shape[2:]) == 1:
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def _invert(variable: str, array: np.ndarray) -> np.ndarray:
    """Their norms and convolutions are of videos, those of the attention of images."""
    tensor = to_torch(variable, array)
    if variable.endswith("bias") or array.ndim > 2:
        return tensor
    return tensor.reshape(*tensor.shape, *([1, 1] if "/attention/" in variable else [1, 1, 1]))


def load(
    folder: str | os.PathLike, abstract: Callable = lambda expected: expected
) -> tuple[AutoencoderWan, Any]:
    """The autoencoder of a folder that diffusers' `save_pretrained` wrote, and its variables.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: the configuration has a value that ours does not know, or the file other tensors than it
            says.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}: {name} = {config[name]!r} is not supported, only {value!r}")
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"{folder}: in_channels and out_channels are equal in what is supported; "
            f"got {config['in_channels']} and {config['out_channels']}"
        )
    module = AutoencoderWan(
        latent_channels=config["z_dim"],
        image_channels=config["in_channels"],
        widths=tuple(config["base_dim"] * multiplier for multiplier in config["dim_mult"]),
        blocks=config["num_res_blocks"],
        temporal_downsample=tuple(config["temperal_downsample"]),
        latent_mean=tuple(config["latents_mean"]),
        latent_deviation=tuple(config["latents_std"]),
    )
    example = jax.ShapeDtypeStruct((1, 1, module.factor, module.factor, module.image_channels), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), example)
    rename = lambda variable: _rename(variable, module.blocks)
    return module, load_variables(folder, abstract(expected), rename, _convert)


def save(folder: str | os.PathLike, module: AutoencoderWan, variables: Any) -> None:
    """Writes what `load` and diffusers read.

    Raises:
        ValueError: widths are no multiples of the first, or moments of latents neither one for all channels nor one of
            each, by name.
    """
    first = module.widths[0]
    if any(width % first for width in module.widths):
        raise ValueError(
            f"widths={module.widths} cannot be saved for diffusers, where they are multiples of the first"
        )
    config = _FIXED | dict(
        base_dim=first,
        dim_mult=[width // first for width in module.widths],
        num_res_blocks=module.blocks,
        z_dim=module.latent_channels,
        in_channels=module.image_channels,
        out_channels=module.image_channels,
        temperal_downsample=[*module.temporal_downsample],
        latents_mean=one_of_each(module, "latent_mean"),
        latents_std=one_of_each(module, "latent_deviation"),
        scale_factor_spatial=module.factor,
        scale_factor_temporal=module.temporal_factor,
    )
    save_variables(folder, config, variables, lambda variable: _rename(variable, module.blocks), _invert)
