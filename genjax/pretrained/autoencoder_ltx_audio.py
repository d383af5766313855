"""LTX-2's autoencoder of sound as diffusers publishes it.

Files hold the moments of the latents as tensors; here they are fields of the module.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_ltx_audio import AutoencoderLTXAudio
from genjax.pretrained.autoencoder_ltx import MOMENTS, add_moments, set_moments
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.layouts import replace_words
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

_WORDS = {
    r"middle_block_(\d)": r"mid.block_\1",
    "shortcut": "nin_shortcut",
    "kernel": "weight",
}


def _names(module: AutoencoderLTXAudio, tensors: Collection[str]) -> Callable[[str], str]:
    def name(variable: str) -> str:
        side, *words = variable.split("/")[1:]  # without the collection
        if side in MOMENTS.values():
            return side
        if not words[0].endswith("downsample"):
            words.insert(-1, "conv")  # the module that pads a convolution holds it under this name
        levels = {
            r"level_(\d+)_block_(\d+)": rf"{_LEVELS[side]}.\1.block.\2",
            r"level_(\d+)_(upsample|downsample)": rf"{_LEVELS[side]}.\1.\2",
        }
        path = ".".join((side, *replace_words(words, levels | _WORDS)))
        return re.sub(r"downsample\.", "downsample.conv.", path)

    return name


_LEVELS = dict(encoder="down", decoder="up")


def _build(config: Config) -> dict[str, Any]:
    """Check what the class takes for granted: equal sides, three levels, and a moment a number."""
    expect(config, "output_channels", config["in_channels"])
    if len(config["ch_mult"]) != 3:
        raise ValueError(f"ch_mult={config['ch_mult']} has {len(config['ch_mult'])} levels, not 3")
    width = config["base_channels"]
    numbers = config["latent_channels"] * config["mel_bins"] // 4
    if width != numbers:
        raise ValueError(f"base_channels={width} moments for latent frames of {numbers} numbers")
    return dict(latent_mean=(0.0,) * width, latent_deviation=(1.0,) * width)


def _add_moments(module: AutoencoderLTXAudio, variables: PyTree) -> PyTree:
    numbers = module.latent_channels * module.bins // module.factor  # of a latent frame
    return add_moments(module, variables, numbers)


_SMALL = dict(base_channels=6, in_channels=1, output_channels=1, latent_channels=2, mel_bins=12)
AUTOENCODER_LTX_AUDIO = Published(
    DIFFUSERS,
    "AutoencoderKLLTX2Audio",
    AutoencoderLTXAudio,
    entries=dict(
        base_channels=Field("width", 128),
        in_channels=Field("channels", 2),
        output_channels=2,
        ch_mult=Field("multipliers", [1, 2, 4], kind=list[int]),
        num_res_blocks=Field("blocks", 2),
        latent_channels=Field("latent_channels", 8),
        mel_bins=Field("bins", 64),
        sample_rate=Field("sample_rate", 16_000),
        mel_hop_length=Field("hop", 160),
        norm_type=Only("pixel"),
        causality_axis=Only("height"),
        attn_resolutions=Only(None),
        mid_block_add_attention=Only(False),
        is_causal=Only(True),
        double_z=Only(True),
    ),
    unused=("resolution", "dropout"),
    build=_build,
    config=lambda module, variables: dict(output_channels=module.channels),
    inputs=lambda module, config: (example(1, module.bins, module.channels),),
    names=_names,
    adapt=set_moments,
    pack=_add_moments,
    ignore=lambda name, tensor: name in MOMENTS.values(),
    examples=(_SMALL, _SMALL | dict(ch_mult=[1, 1, 2], num_res_blocks=1)),
)
PUBLISHED = (AUTOENCODER_LTX_AUDIO,)
