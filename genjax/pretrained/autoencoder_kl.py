"""Convolutional KL autoencoders as diffusers writes them, those of Stable Diffusion and FLUX among them."""

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.pretrained.configuration import expect, read_config
from genjax.pretrained.safetensors_io import from_torch, load_variables, open_tensors, save_variables

# What a configuration means that does not name it (diffusers' signature); the last two are not the network's.
SHARED_DEFAULTS = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"],
    up_block_types=["UpDecoderBlock2D"],
    block_out_channels=[64],
    layers_per_block=1,
    act_fn="silu",
    norm_num_groups=32,
    mid_block_add_attention=True,
    scaling_factor=0.18215,
    sample_size=32,
    force_upcast=True,
)
_DEFAULTS = SHARED_DEFAULTS | dict(
    latent_channels=4,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
)
# Theirs for ours within a layer.
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
# The files of Stable Diffusion are of a time when attention had other names, and diffusers still reads them.
_OLD_WORDS = _WORDS | {"query": "query", "key": "key", "value": "value", "projection": "proj_attn"}


def level_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the encoder and the decoder from a configuration of diffusers'.

    Raises:
        ValueError: one that names the entry that is not supported.
    """
    expect(config, "act_fn", "silu", "swish")
    widths = tuple(config["block_out_channels"])
    attention = [kind == "AttnDownEncoderBlock2D" for kind in config["down_block_types"]]
    down = ["AttnDownEncoderBlock2D" if attend else "DownEncoderBlock2D" for attend in attention]
    up = ["AttnUpDecoderBlock2D" if attend else "UpDecoderBlock2D" for attend in reversed(attention)]
    expect(config, "down_block_types", down)
    expect(config, "up_block_types", up)  # an encoder and a decoder with attention at different sides
    if len(attention) != len(widths):
        raise ValueError(
            f"down_block_types={down} has {len(down)} levels; block_out_channels={list(widths)} {len(widths)}"
        )
    return dict(
        widths=widths,
        blocks=config["layers_per_block"],
        attention_levels=tuple(level for level, attend in enumerate(attention) if attend),
        mid_attention=config["mid_block_add_attention"],
        groups=config["norm_num_groups"],
        image_channels=config["out_channels"],
    )


def level_config(module: Any, variables: Any) -> dict[str, Any]:
    """The inverse of `level_fields`; of the encoder's input only its parameters know the channels."""
    attends = [level in module.attention_levels for level in range(len(module.widths))]
    return dict(
        in_channels=variables["params"]["encoder"]["conv_in"]["kernel"].shape[-2],
        out_channels=module.image_channels,
        down_block_types=[f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends],
        up_block_types=[f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
        block_out_channels=[*module.widths],
        layers_per_block=module.blocks,
        act_fn="silu",
        norm_num_groups=module.groups,
        mid_block_add_attention=module.mid_attention,
    )


def one_of_each(module: Any, name: str) -> list[float]:
    """`latent_mean` or `latent_deviation` of every channel of the latents.

    Raises:
        ValueError: the module has neither one for all nor one of each.
    """
    values, channels = [*getattr(module, name)], module.latent_channels
    if len(values) not in (1, channels):
        raise ValueError(
            f"{name} has {len(values)} values for {channels} channels; save module.clone({name}=...) with one of each"
        )
    return values * (channels // len(values))


def one_for_all(module: Any, name: str) -> float:
    """`latent_mean` or `latent_deviation` of a class that in diffusers has one for all channels.

    Raises:
        ValueError: the module has more.
    """
    value, *others = getattr(module, name)
    if others:
        raise ValueError(
            f"{name} has {1 + len(others)} values; in diffusers {type(module).__name__} has one for all channels"
        )
    return value


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Theirs are channel-first: kernels `[out, in]` and `[out, in, height, width]`."""
    if re.search(r"attention\w*/\w+/kernel$", variable):  # to some a 1×1 convolution
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def layer_names(
    module: Any, level: str, block: str, attention: str, sampler: str, middle: tuple[str, str, str]
) -> dict[str, str]:
    """Theirs for our layers, from patterns; levels of the decoder are counted from the latents' side."""
    layers, levels = {"quantizer": "quantize.embedding"}, len(module.widths)
    for part, direction, blocks in (("encoder", "down", module.blocks), ("decoder", "up", module.blocks + 1)):
        for ours in range(levels):
            theirs = ours if part == "encoder" else levels - 1 - ours
            theirs = f"{part}.{level.format(direction=direction, level=theirs)}"
            for i in range(blocks):
                layers[f"{part}/block_{ours}_{i}"] = f"{theirs}.{block}.{i}"
                layers[f"{part}/attention_{ours}_{i}"] = f"{theirs}.{attention}.{i}"
            layers[f"{part}/{direction}sample_{ours}"] = f"{theirs}.{sampler.format(direction=direction)}"
        for ours, theirs in zip(("mid_block_0", "mid_attention", "mid_block_1"), middle, strict=True):
            layers[f"{part}/{ours}"] = f"{part}.{theirs}"
    return layers


def renaming(layers: dict[str, str], words: dict[str, str]) -> Callable[[str], str]:
    """Theirs for our variables, by tables of layers, "encoder/norm_out", and of words within these."""

    def rename(variable: str) -> str:
        names = variable.split("/")[1:]  # less the collection
        depth = 2 if names[0] in ("encoder", "decoder") else 1
        layer = "/".join(names[:depth])
        layer = layers.get(layer, layer.replace("/", "."))
        return ".".join([layer, *(words.get(word, word) for word in names[depth:])])

    return rename


def load_variables_of(
    path: str | os.PathLike,
    module: Any,
    in_channels: int,
    rename: Callable[[str], str],
    abstract: Callable = lambda expected: expected,
    ignore: Callable[[str, np.ndarray], bool] = lambda name, tensor: False,
) -> Any:
    example = jax.ShapeDtypeStruct((1, module.factor, module.factor, in_channels), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), example)
    return load_variables(path, abstract(expected), rename, _convert, ignore)


def names_of(module: Any, old: bool = False) -> Callable[[str], str]:
    """diffusers' names for our variables.

    Args:
        old: those of attention are of the time of Stable Diffusion.
    """
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    layers = layer_names(
        module, "{direction}_blocks.{level}", "resnets", "attentions", "{direction}samplers.0.conv", middle
    )
    layers |= {f"{part}/norm_out": f"{part}.conv_norm_out" for part in ("encoder", "decoder")}
    return renaming(layers, _OLD_WORDS if old else _WORDS)


def load_folder(
    folder: str | os.PathLike, module: Any, in_channels: int, abstract: Callable = lambda expected: expected
) -> Any:
    """The variables of `module` from a folder that diffusers wrote.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    old = any(name.endswith("proj_attn.weight") for name in open_tensors(folder))
    return load_variables_of(folder, module, in_channels, names_of(module, old), abstract)


def load(
    folder: str | os.PathLike, abstract: Callable = lambda expected: expected
) -> tuple[AutoencoderKL, Any]:
    """The module and its variables from a folder written by `save_pretrained` of diffusers' `AutoencoderKL`.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; or one that
            lists all missing, extra and misshapen tensors.
    """
    config = read_config(folder, "AutoencoderKL", _DEFAULTS)
    if config["latents_mean"] is not None:
        expect(config, "shift_factor", None)  # pipelines use the one or the other
    mean = config["latents_mean"] or [config["shift_factor"] or 0.0]
    module = AutoencoderKL(
        latent_channels=config["latent_channels"],
        use_quant_conv=config["use_quant_conv"],
        use_post_quant_conv=config["use_post_quant_conv"],
        latent_mean=tuple(mean),
        latent_deviation=tuple(
            deviation / config["scaling_factor"] for deviation in config["latents_std"] or [1.0]
        ),
        **level_fields(config),
    )
    return module, load_folder(folder, module, config["in_channels"], abstract)


def save(folder: str | os.PathLike, module: AutoencoderKL, variables: Any) -> None:
    """Writes what `load` and diffusers read.

    Raises:
        ValueError: the moments of latents are neither one for all channels nor one of each, by name.
    """
    mean, deviation = module.latent_mean, module.latent_deviation
    if len(mean) == len(deviation) == 1:
        moments = dict(scaling_factor=1 / deviation[0], shift_factor=mean[0] or None)
    else:
        moments = dict(
            scaling_factor=1.0,
            latents_mean=one_of_each(module, "latent_mean"),
            latents_std=one_of_each(module, "latent_deviation"),
        )
    config = dict(
        _class_name="AutoencoderKL",
        latent_channels=module.latent_channels,
        use_quant_conv=module.use_quant_conv,
        use_post_quant_conv=module.use_post_quant_conv,
        **level_config(module, variables),
        **moments,
    )
    save_variables(folder, config, variables, names_of(module))
