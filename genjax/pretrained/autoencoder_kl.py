"""Convolutional KL autoencoders as diffusers publishes them, Stable Diffusion's and FLUX's among them."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.layouts import from_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

# What this class and `VQModel` share.
LEVEL_ENTRIES = dict(
    in_channels=3,
    out_channels=Field("image_channels", 3),
    down_block_types=["DownEncoderBlock2D"],
    up_block_types=["UpDecoderBlock2D"],
    block_out_channels=Field("widths", [64]),
    layers_per_block=Field("blocks", 1),
    act_fn=Only("silu", "swish"),
    norm_num_groups=Field("groups", 32),
    mid_block_add_attention=Field("mid_attention", True),
    scaling_factor=0.18215,
)
LEVEL_UNUSED = ("sample_size", "force_upcast")
LEVEL_EXAMPLE = (
    dict(down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])
    | dict(up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"])
    | dict(block_out_channels=[4, 8], norm_num_groups=2, scaling_factor=0.5)
)
# Words within a layer.
_WORDS = {
    "kernel": "weight",
    "scale": "weight",
    "codes": "weight",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "projection": "to_out.0",
}
# The files of Stable Diffusion have former names of attention, which diffusers still reads.
_FORMER_WORDS = _WORDS | dict(query="query", key="key", value="value", projection="proj_attn")


def attention_levels(config: Config) -> tuple[int, ...]:
    """Return the levels with attention.

    Raises:
        ValueError: blocks are of another type, or encoder and decoder attend at different levels.
    """
    down, widths = config["down_block_types"], config["block_out_channels"]
    attends = [kind == "AttnDownEncoderBlock2D" for kind in down]
    expect(config, "down_block_types", [f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends])
    expected = [f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)]
    expect(config, "up_block_types", expected)
    if len(down) != len(widths):
        raise ValueError(
            f"down_block_types={down} has {len(down)} levels; block_out_channels={widths} {len(widths)}"
        )
    return tuple(level for level, attend in enumerate(attends) if attend)


def level_config(module: Any, variables: PyTree) -> dict[str, Any]:
    """Return the shared entries that are no field's."""
    attends = [level in module.attention_levels for level in range(len(module.widths))]
    return dict(
        # Only the parameters know the channels of the input.
        in_channels=variables["params"]["encoder"]["conv_in"]["kernel"].shape[-2],
        down_block_types=[f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends],
        up_block_types=[f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
    )


def level_inputs(module: Any, config: Config) -> tuple:
    """Return the smallest image."""
    return (example(module.factor, module.factor, config["in_channels"]),)


def one_of_each(module: nn.Module, name: str) -> list[float]:
    """Return `latent_mean` or `latent_deviation` of every channel of the latents.

    Raises:
        ValueError: the module has neither one for all nor one of each.
    """
    values, channels = [*getattr(module, name)], module.latent_channels
    if len(values) not in (1, channels):
        raise ValueError(
            f"{name} has {len(values)} values for {channels} channels; save module.clone({name}=...) "
            "with one of each"
        )
    return values * (channels // len(values))


def one_for_all(module: nn.Module, name: str) -> float:
    """Return `latent_mean` or `latent_deviation` of a class with one for all channels.

    Raises:
        ValueError: the module has more.
    """
    value, *others = getattr(module, name)
    if others:
        raise ValueError(
            f"{name} has {1 + len(others)} values; the class has one for all channels of the latents"
        )
    return value


def convert(module: Any, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the array of a tensor, which is channel-first."""
    if re.search(r"attention\w*/\w+/kernel$", variable):  # in some files a 1×1 convolution
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def level_layers(
    module: Any, level: str, block: str, attention: str, sampler: str, middle: tuple[str, str, str]
) -> dict[str, str]:
    """Return the published names of our layers; levels of the decoder are counted from the latents.

    Args:
        level, sampler: patterns with "{direction}" and "{level}".
    """
    layers, levels = {"quantizer": "quantize.embedding"}, len(module.widths)
    for part, direction, blocks in (
        ("encoder", "down", module.blocks),
        ("decoder", "up", module.blocks + 1),
    ):
        for ours in range(levels):
            index = ours if part == "encoder" else levels - 1 - ours
            prefix = f"{part}.{level.format(direction=direction, level=index)}"
            for i in range(blocks):
                layers[f"{part}/block_{ours}_{i}"] = f"{prefix}.{block}.{i}"
                layers[f"{part}/attention_{ours}_{i}"] = f"{prefix}.{attention}.{i}"
            layers[f"{part}/{direction}sample_{ours}"] = f"{prefix}.{sampler.format(direction=direction)}"
        for ours, name in zip(("mid_block_0", "mid_attention", "mid_block_1"), middle, strict=True):
            layers[f"{part}/{ours}"] = f"{part}.{name}"
    return layers


def naming(layers: Mapping[str, str], words: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from variables to tensors.

    Args:
        layers: names of layers, "encoder/norm_out"; those that are not listed keep theirs.
        words: names within a layer.
    """

    def name(variable: str) -> str:
        path = variable.split("/")[1:]  # less the collection
        depth = 2 if path[0] in ("encoder", "decoder") else 1
        layer = "/".join(path[:depth])
        layer = layers.get(layer, layer.replace("/", "."))
        return ".".join([layer, *(words.get(word, word) for word in path[depth:])])

    return name


def names(module: Any, tensors: Collection[str]) -> Callable[[str], str]:
    """Return diffusers' names, or the former ones where a file has these."""
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    level, sampler = "{direction}_blocks.{level}", "{direction}samplers.0.conv"
    layers = level_layers(module, level, "resnets", "attentions", sampler, middle)
    layers |= {f"{part}/norm_out": f"{part}.conv_norm_out" for part in ("encoder", "decoder")}
    former = any(name.endswith("proj_attn.weight") for name in tensors)
    return naming(layers, _FORMER_WORDS if former else _WORDS)


def _build(config: Config) -> dict[str, Any]:
    if config["latents_mean"] is not None:
        expect(config, "shift_factor", None)  # pipelines use the one or the other
    deviations = config["latents_std"] or [1.0]
    return dict(
        attention_levels=attention_levels(config),
        latent_mean=tuple(config["latents_mean"] or [config["shift_factor"] or 0.0]),
        latent_deviation=tuple(value / config["scaling_factor"] for value in deviations),
    )


def _config(module: AutoencoderKL, variables: PyTree) -> dict[str, Any]:
    mean, deviation = module.latent_mean, module.latent_deviation
    if len(mean) == len(deviation) == 1:
        moments = dict(scaling_factor=1 / deviation[0], shift_factor=mean[0] or None)
    else:
        moments = dict(
            scaling_factor=1.0,
            latents_mean=one_of_each(module, "latent_mean"),
            latents_std=one_of_each(module, "latent_deviation"),
        )
    return level_config(module, variables) | moments


_SMALL = LEVEL_EXAMPLE | dict(latent_channels=2)
AUTOENCODER_KL = Published(
    DIFFUSERS,
    "AutoencoderKL",
    AutoencoderKL,
    entries=LEVEL_ENTRIES
    | dict(
        latent_channels=Field("latent_channels", 4),
        use_quant_conv=Field("use_quant_conv", True),
        use_post_quant_conv=Field("use_post_quant_conv", True),
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
    ),
    unused=LEVEL_UNUSED,
    build=_build,
    config=_config,
    inputs=level_inputs,
    names=names,
    convert=convert,
    examples=(
        _SMALL | dict(shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False),
        _SMALL
        | dict(in_channels=4, latents_mean=[0.5, -1.0], latents_std=[1.0, 2.0], scaling_factor=1.0),
    ),
)
PUBLISHED = (AUTOENCODER_KL,)
