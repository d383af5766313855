"""The autoencoders of Wan 2.1 and 2.2 as diffusers publishes them."""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.pretrained.autoencoder_kl import check_moments, moments
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

_WORDS = {
    r"level_(\d+)_block_(\d+)": r"up_blocks.\1.resnets.\2",
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


def _encoder_block(module: AutoencoderWan, word: str) -> str:
    """Return diffusers' name of a block of a level of the encoder, and other names unchanged."""
    match = re.fullmatch(r"level_(\d+)_(?:block_(\d+)|downsample)", word)
    if not match:
        return word
    level, block = int(match[1]), match[2]
    if module.residual:
        part = "downsampler" if block is None else f"resnets.{block}"
        return f"down_blocks.{level}.{part}"
    # One count runs through all levels' blocks.
    index = module.blocks if block is None else int(block)
    return f"down_blocks.{level * (module.blocks + 1) + index}"


def _names(module: AutoencoderWan, tensors: Collection[str]) -> Callable[[str], str]:
    def name(variable: str) -> str:
        words = variable.split("/")[1:]  # without the collection
        if words[0] == "encoder":
            words[1] = _encoder_block(module, words[1])
        upsampler = r"up_blocks.\1." + ("upsampler" if module.residual else "upsamplers.0")
        patterns = {r"level_(\d+)_upsample": upsampler} | _WORDS
        return ".".join(replace_words(words, patterns))

    return name


def _convert(module: AutoencoderWan, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Turn convolutions that are matrix products into matrices."""
    if not variable.endswith("kernel"):
        return tensor.reshape(-1)
    if max(tensor.shape[2:]) == 1:
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def _invert(module: AutoencoderWan, variable: str, array: np.ndarray) -> np.ndarray:
    """Restore the axes of convolutions over videos, or over images in attention."""
    tensor = to_torch(variable, array)
    if variable.endswith("bias") or array.ndim > 2:
        return tensor
    return tensor.reshape(*tensor.shape, *([1, 1] if "/attention/" in variable else [1, 1, 1]))


def _build(config: Config) -> dict[str, Any]:
    expect(config, "out_channels", config["in_channels"])
    check_moments(config, "z_dim")
    patch_size, channels = config["patch_size"] or 1, config["in_channels"]
    if channels % patch_size**2:
        raise ValueError(f"in_channels={channels} does not fit patch_size={patch_size}")
    widths = lambda base: base and tuple(base * factor for factor in config["dim_mult"])
    return dict(
        widths=widths(config["base_dim"]),
        decoder_widths=widths(config["decoder_base_dim"]),
        patch_size=patch_size,
        image_channels=channels // patch_size**2,
    )


def _config(module: AutoencoderWan, variables: PyTree) -> dict[str, Any]:
    first, decoder_widths = module.widths[0], module.decoder_widths
    if any(width % first for width in module.widths):
        raise ValueError(f"widths={module.widths} are not all multiples of the first")
    factors = [width // first for width in module.widths]
    base = decoder_widths and decoder_widths[0] // factors[0]
    if decoder_widths and [*decoder_widths] != [base * factor for factor in factors]:
        raise ValueError(f"decoder_widths={decoder_widths} have other ratios than widths")
    channels = module.image_channels * module.patch_size**2
    return dict(
        base_dim=first,
        decoder_base_dim=base,
        dim_mult=factors,
        patch_size=None if module.patch_size == 1 else module.patch_size,
        in_channels=channels,
        out_channels=channels,
        latents_mean=moments(module, "latent_mean", module.latent_channels),
        latents_std=moments(module, "latent_deviation", module.latent_channels),
        scale_factor_spatial=module.factor,
        scale_factor_temporal=module.temporal_factor,
    )


_SMALL = dict(base_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True]) | dict(
    z_dim=2, latents_mean=[0.5, 0.25], latents_std=[1.0, 2.0]
)
AUTOENCODER_WAN = Published(
    DIFFUSERS,
    "AutoencoderKLWan",
    AutoencoderWan,
    entries=dict(
        base_dim=96,
        z_dim=Field("latent_channels", 16),
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=Field("blocks", 2),
        temperal_downsample=Field("temporal_downsample", [False, True, True]),
        in_channels=3,
        out_channels=3,
        latents_mean=Field("latent_mean", [*AutoencoderWan.latent_mean]),
        latents_std=Field("latent_deviation", [*AutoencoderWan.latent_deviation]),
        attn_scales=Only([]),
        decoder_base_dim=Value(None, int | None),
        dropout=Only(0.0),
        is_residual=Field("residual", False),
        patch_size=Value(None, int | None),
    ),
    # The factors follow from the other entries. No version of the library reads clip_output.
    unused=("scale_factor_spatial", "scale_factor_temporal", "clip_output"),
    build=_build,
    config=_config,
    inputs=lambda module, config: (
        example(1, module.factor, module.factor, module.image_channels),
    ),
    names=_names,
    convert=_convert,
    invert=_invert,
    examples=(
        _SMALL,
        _SMALL
        | dict(decoder_base_dim=6, is_residual=True, dim_mult=[1, 1])
        | dict(patch_size=2, in_channels=12, out_channels=12),
    ),
)
PUBLISHED = (AUTOENCODER_WAN,)
