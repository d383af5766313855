"""Wan 2.1's autoencoder as diffusers publishes it."""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.pretrained.autoencoder_kl import check_moments, moments, smallest_image
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published

_WORDS = {
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


def _names(module: AutoencoderWan, tensors: Collection[str]) -> Callable[[str], str]:
    def name(variable: str) -> str:
        words = variable.split("/")[1:]  # without the collection
        if words[0] == "encoder":  # one count runs through all levels' blocks
            match = re.fullmatch(r"level_(\d+)_(?:block_(\d+)|downsample)", words[1])
            if match:
                index = module.blocks if match[2] is None else int(match[2])
                words[1] = f"down_blocks.{int(match[1]) * (module.blocks + 1) + index}"
        return ".".join(replace_words(words, _WORDS))

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
    return dict(widths=tuple(config["base_dim"] * factor for factor in config["dim_mult"]))


def _config(module: AutoencoderWan, variables: PyTree) -> dict[str, Any]:
    first = module.widths[0]
    if any(width % first for width in module.widths):
        raise ValueError(f"widths={module.widths} are not all multiples of the first")
    return dict(
        base_dim=first,
        dim_mult=[width // first for width in module.widths],
        out_channels=module.image_channels,
        latents_mean=moments(module, "latent_mean", module.latent_channels),
        latents_std=moments(module, "latent_deviation", module.latent_channels),
        scale_factor_spatial=module.factor,
        scale_factor_temporal=module.temporal_factor,
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
        in_channels=Field("image_channels", 3),
        out_channels=3,
        latents_mean=Field("latent_mean", [*AutoencoderWan.latent_mean]),
        latents_std=Field("latent_deviation", [*AutoencoderWan.latent_deviation]),
        attn_scales=Only([]),
        decoder_base_dim=Only(None),
        dropout=Only(0.0),
        is_residual=Only(False),  # True in Wan 2.2, which also has patches
        patch_size=Only(None),
    ),
    unused=("scale_factor_spatial", "scale_factor_temporal"),  # they follow from the other entries
    build=_build,
    config=_config,
    inputs=lambda module, config: (smallest_image(module, config)[0][None],),
    names=_names,
    convert=_convert,
    invert=_invert,
    examples=(
        dict(base_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True])
        | dict(z_dim=2, latents_mean=[0.5, 0.25], latents_std=[1.0, 2.0]),
    ),
)
PUBLISHED = (AUTOENCODER_WAN,)
