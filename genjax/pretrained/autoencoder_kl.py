"""KL autoencoders as diffusers publishes them, such as those of Stable Diffusion and FLUX."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import from_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

# The entries that this class and `VQModel` share.
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
LEVEL_EXAMPLE = dict(
    down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    block_out_channels=[4, 8],
    norm_num_groups=2,
    scaling_factor=0.5,
)
_KINDS = {
    **dict(block="resnets", attention="attentions"),
    **dict(downsample="downsamplers.0.conv", upsample="upsamplers.0.conv"),
}
_WORDS = (
    dict(mid_block_0="mid_block.resnets.0", mid_block_1="mid_block.resnets.1")
    | dict(mid_attention="mid_block.attentions.0", norm_out="conv_norm_out")
    | dict(quantizer="quantize.embedding", shortcut="conv_shortcut", norm="group_norm")
    | dict(query="to_q", key="to_k", value="to_v", projection="to_out.0")
)
# The files of Stable Diffusion have old names of attention, which diffusers still reads.
_FORMER_WORDS = _WORDS | dict(query="query", key="key", value="value", projection="proj_attn")


def attention_levels(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the levels with attention, of the encoder and of the decoder.

    Raises:
        ValueError: a block has another type, or the numbers of blocks and widths differ.
    """
    sides = []
    for name, types in _BLOCK_TYPES.items():
        kinds, widths = config[name], config["block_out_channels"]
        if not set(kinds) <= set(types):
            raise ValueError(f"{name}={kinds} is not supported; only {', '.join(types)}")
        if len(kinds) != len(widths):
            counts = f"{len(kinds)} levels; block_out_channels={widths} {len(widths)}"
            raise ValueError(f"{name}={kinds} has {counts}")
        sides.append([types.index(kind) for kind in kinds])
    down, up = sides[0], sides[1][::-1]  # the decoder begins at the latents
    return tuple(
        tuple(level for level, attends in enumerate(side) if attends) for side in (down, up)
    )


_BLOCK_TYPES = dict(
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
)


def _block_types(count: int, *levels: Collection[int]) -> dict[str, list[str]]:
    """Return the entries for levels with attention, as `attention_levels` reads them."""
    down, up = ([level in side for level in range(count)] for side in levels)
    types = zip(_BLOCK_TYPES.items(), (down, up[::-1]), strict=True)
    return {name: [kinds[attends] for attends in side] for (name, kinds), side in types}


def level_config(module: Any, variables: PyTree) -> dict[str, Any]:
    """Return the shared entries that no field of the module holds."""
    down = module.attention_levels
    up = getattr(module, "decoder_attention_levels", None)
    types = _block_types(len(module.widths), down, down if up is None else up)
    # Only the parameters tell the number of input channels.
    kernel = variables["params"]["encoder"]["conv_in"]["kernel"]
    return dict(in_channels=kernel.shape[-2], **types)


def smallest_image(module: Any, config: Config) -> tuple:
    """Return the smallest inputs of an autoencoder."""
    return (example(module.factor, module.factor, config["in_channels"]),)


def moments(module: nn.Module, name: str, count: int) -> list[float]:
    """Return `latent_mean` or `latent_deviation` with `count` values; one value stands for all.

    Raises:
        ValueError: the module has another number of values.
    """
    values = [*getattr(module, name)]
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} has {len(values)} values, the class has {count}; save module.clone({name}=...)"
        )
    return values * (count // len(values))


def check_moments(config: Config, channels: str) -> None:
    """Check that a configuration has moments for each channel of the latents, or for all.

    Args:
        channels: name of the entry with the number of channels.

    Raises:
        ValueError: the configuration has another number of moments.
    """
    for name in ("latents_mean", "latents_std"):
        if config[name] is not None and len(config[name]) not in (1, config[channels]):
            count = f"{channels}={config[channels]}"
            raise ValueError(f"{name}={config[name]} has {len(config[name])} values; {count}")


def convert(module: Any, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Return the array of a tensor, which is channel-first."""
    if re.search(r"attention\w*/\w+/kernel$", variable):  # some files store a 1×1 convolution
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def level_names(
    module: Any, level: str, kinds: Mapping[str, str], words: Mapping[str, str]
) -> Callable[[str], str]:
    """Return a function from variables' names to tensors' names.

    Args:
        level: name of a level, with "{direction}" (down or up) and "{level}". The decoder counts
            levels from the latents.
        kinds: names of a level's parts.
        words: names of other layers, and names within layers.
    """

    def place(match: re.Match) -> str:
        part, kind, index, number = match.groups()
        ours, last = int(index), len(module.widths) - 1
        direction, index = ("down", ours) if part == "encoder" else ("up", last - ours)
        layer = f"{part}/{level.format(direction=direction, level=index)}.{kinds[kind]}"
        return f"{layer}.{number}" if number else layer

    words = dict(kernel="weight", scale="weight", codes="weight") | words
    pattern = rf"^(encoder|decoder)/({'|'.join(kinds)})_(\d+)(?:_(\d+))?(?=/)"

    def name(variable: str) -> str:
        path = re.sub(pattern, place, variable.partition("/")[2])  # without the collection
        return ".".join(words.get(word, word) for word in path.split("/"))

    return name


def names(module: Any, tensors: Collection[str]) -> Callable[[str], str]:
    """Return diffusers' names, or the old ones if a file has the old ones."""
    former = any(name.endswith("proj_attn.weight") for name in tensors)
    words = _FORMER_WORDS if former else _WORDS
    return level_names(module, "{direction}_blocks.{level}", _KINDS, words)


def _build(config: Config) -> dict[str, Any]:
    if config["latents_mean"] is not None:
        expect(config, "shift_factor", None)  # pipelines use either
    check_moments(config, "latent_channels")
    deviations = config["latents_std"] or [1.0]
    down, up = attention_levels(config)
    return dict(
        attention_levels=down,
        decoder_attention_levels=None if up == down else up,
        latent_mean=tuple(config["latents_mean"] or [config["shift_factor"] or 0.0]),
        latent_deviation=tuple(value / config["scaling_factor"] for value in deviations),
    )


def _config(module: AutoencoderKL, variables: PyTree) -> dict[str, Any]:
    config = level_config(module, variables)
    mean, deviation = module.latent_mean, module.latent_deviation
    if len(mean) == len(deviation) == 1:
        return config | dict(scaling_factor=1 / deviation[0], shift_factor=mean[0] or None)
    return config | dict(
        scaling_factor=1.0,
        latents_mean=moments(module, "latent_mean", module.latent_channels),
        latents_std=moments(module, "latent_deviation", module.latent_channels),
    )


_SMALL = LEVEL_EXAMPLE | dict(latent_channels=2)
_MOMENTS = dict(latents_mean=[0.5, -1.0], latents_std=[1.0, 2.0])
AUTOENCODER_KL = Published(
    DIFFUSERS,
    "AutoencoderKL",
    AutoencoderKL,
    entries=LEVEL_ENTRIES
    | dict(
        latent_channels=Field("latent_channels", 4),
        use_quant_conv=Field("use_quant_conv", True),
        use_post_quant_conv=Field("use_post_quant_conv", True),
        shift_factor=Value(None, float | None),
        latents_mean=Value(None, list[float] | None),
        latents_std=Value(None, list[float] | None),
    ),
    unused=LEVEL_UNUSED,
    build=_build,
    config=_config,
    inputs=smallest_image,
    names=names,
    convert=convert,
    examples=(
        _SMALL | dict(shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False),
        _SMALL | _MOMENTS | dict(in_channels=4, scaling_factor=1.0),
        _SMALL | dict(up_block_types=["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
    ),
)
PUBLISHED = (AUTOENCODER_KL,)
