"""The autoencoders of LTX-Video and LTX-2 as diffusers publishes them.

Files hold the moments of the latents as tensors; here they are fields of the module.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_ltx import STRIDES, AutoencoderLTX, AutoencoderLTX2
from genjax.pretrained.autoencoder_kl import moments
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

MOMENTS = dict(latent_mean="latents_mean", latent_deviation="latents_std")
_PLAIN, _SHUFFLED, _SECOND = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D", "LTX2VideoDownBlock3D"
_SHUFFLES = tuple(kind for kind in STRIDES if kind != "conv")
_WORDS = {
    "encoder": {r"level_(\d+)_block_(\d+)": r"down_blocks.\1.resnets.\2"}
    | {r"level_(\d+)_change": r"down_blocks.\1.conv_out"}
    | {r"level_(\d+)_(conv|downsample)": r"down_blocks.\1.downsamplers.0"},
    "decoder": {r"level_(\d+)_block_(\d+)": r"up_blocks.\1.resnets.\2"}
    | {r"level_(\d+)_change": r"up_blocks.\1.conv_in"}
    | {r"level_(\d+)_upsample": r"up_blocks.\1.upsamplers.0"}
    | {r"level_(\d+)_time": r"up_blocks.\1.time_embedder.timestep_embedder"}
    | {"middle_time": "mid_block.time_embedder.timestep_embedder"}
    | {"head_time": "time_embedder.timestep_embedder"},
}
_SHARED = (
    {r"middle_block_(\d+)": r"mid_block.resnets.\1", "shortcut": "conv_shortcut"}
    | dict(linear_in="linear_1", linear_out="linear_2", scale="weight", kernel="weight")
    | {"time_scale": "timestep_scale_multiplier", r"noise(\d)": r"per_channel_scale\1"}
)


def _names(module: AutoencoderLTX, tensors: Collection[str]) -> Callable[[str], str]:
    plain = "linear|norm|shortcut" if isinstance(module, AutoencoderLTX2) else "linear|norm"

    def name(variable: str) -> str:
        side, *words = variable.split("/")[1:]  # without the collection
        if side in MOMENTS.values():
            return side
        if words[-1] == "table":
            words[-2:] = ["scale_shift_table"]
        elif words[-1] in ("kernel", "bias") and not re.match(plain, words[-2]):
            words.insert(-1, "conv")  # the module that pads a convolution holds it under this name
        return ".".join((side, *replace_words(words, _WORDS[side] | _SHARED)))

    return name


def _convert(module: AutoencoderLTX, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Turn convolutions that are matrix products into matrices, and scales into vectors."""
    if "/noise" in variable:
        return tensor.reshape(-1)
    if variable.endswith("shortcut/kernel"):
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)


def _invert(module: AutoencoderLTX, variable: str, array: np.ndarray) -> np.ndarray:
    tensor = to_torch(variable, array)
    if "/noise" in variable:
        return tensor[:, None, None]
    return tensor[..., None, None, None] if variable.endswith("shortcut/kernel") else tensor


def set_moments(module: nn.Module, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """Return a module with the moments that a file holds.

    Raises:
        ValueError: the file lacks them.
    """
    fields = {}
    for field, name in MOMENTS.items():
        if name not in tensors:
            raise ValueError(f"the file lacks {name}")
        fields[field] = tuple(np.asarray(tensors[name], np.float32).tolist())
    return module.clone(**fields)


def add_moments(module: nn.Module, variables: PyTree, count: int) -> PyTree:
    """Return variables with the moments of a module, `count` values each, for a file."""
    values = {name: np.float32(moments(module, field, count)) for field, name in MOMENTS.items()}
    return {"params": {**variables["params"], **values}}


def _expect_lengths(config: Config, length: int, *names: str) -> None:
    for name in names:
        if len(config[name]) != length:
            given = f"{name}={config[name]}"
            raise ValueError(f"{given} has {len(config[name])} values; expected {length}")


def _build(config: Config) -> dict[str, Any]:
    kinds, widths = config["down_block_types"], config["block_out_channels"]
    levels = len(kinds)
    for kind in kinds:
        expect(dict(down_block_types=kind), "down_block_types", _PLAIN, _SHUFFLED)
    if len({*kinds}) > 1:
        raise ValueError(f"down_block_types={kinds} are of two kinds; expected one")
    shuffled = kinds[0] == _SHUFFLED
    _expect_lengths(config, levels + shuffled, "block_out_channels")
    _expect_lengths(config, levels, "spatio_temporal_scaling", "downsample_type")
    _expect_lengths(config, levels + 1, "layers_per_block")
    decoder = len(config["decoder_block_out_channels"])
    _expect_lengths(
        config, decoder, "decoder_spatio_temporal_scaling", "upsample_residual", "upsample_factor"
    )
    _expect_lengths(config, decoder + 1, "decoder_layers_per_block", "decoder_inject_noise")
    ends = config["downsample_type"] if shuffled else ["conv"] * levels
    for end in ends:
        expect(dict(downsample_type=end), "downsample_type", *_SHUFFLES if shuffled else ("conv",))
    return dict(
        widths=tuple(widths) if shuffled else (*widths, widths[-1]),
        downsample=_where(config["spatio_temporal_scaling"], ends),
        upsample=_where(config["decoder_spatio_temporal_scaling"], ["spatiotemporal"] * decoder),
        **_no_moments(config),
    )


def _where(scaled: Sequence[bool], kinds: Sequence[str]) -> tuple[str | None, ...]:
    """Return the kind of each level that changes sizes, and None for the others."""
    pairs = zip(kinds, scaled, strict=True)
    return tuple(kind if is_scaled else None for kind, is_scaled in pairs)


def _no_moments(config: Config) -> dict[str, Any]:
    """Return moments that change nothing; the file's take their place."""
    count = config["latent_channels"]
    return dict(latent_mean=(0.0,) * count, latent_deviation=(1.0,) * count)


def _config(module: AutoencoderLTX, variables: PyTree) -> dict[str, Any]:
    levels = len(module.downsample)
    shuffled = any(end not in ("conv", None) for end in module.downsample)
    widths = [*module.widths]
    if not shuffled and widths.pop() != widths[-1]:
        raise ValueError(f"widths={module.widths} end with two different numbers")
    if others := set(module.upsample) - {"spatiotemporal", None}:
        raise ValueError(f"upsample has {others}; only 'spatiotemporal', None")
    default = "spatiotemporal" if shuffled else "conv"
    return dict(
        block_out_channels=widths,
        down_block_types=[_SHUFFLED if shuffled else _PLAIN] * levels,
        spatio_temporal_scaling=[end is not None for end in module.downsample],
        downsample_type=[end or default for end in module.downsample],
        decoder_spatio_temporal_scaling=[end is not None for end in module.upsample],
        spatial_compression_ratio=module.factor,
        temporal_compression_ratio=module.temporal_factor,
    )


_SMALL = dict(
    latent_channels=3,
    block_out_channels=[4, 6],
    down_block_types=[_PLAIN] * 2,
    spatio_temporal_scaling=[True, False],
    downsample_type=["conv"] * 2,
    layers_per_block=[1, 1, 2],
    decoder_block_out_channels=[4, 6],
    decoder_spatio_temporal_scaling=[True, False],
    decoder_layers_per_block=[1, 1, 2],
    decoder_inject_noise=[False] * 3,
    upsample_residual=[False] * 2,
    upsample_factor=[1] * 2,
    patch_size=2,
)
_SHARED_ENTRIES = dict(
    in_channels=Only(3),
    out_channels=Only(3),
    latent_channels=Field("latent_channels", 128),
    patch_size=Field("patch_size", 4),
    patch_size_t=Only(1),
    resnet_norm_eps=Only(1e-6),
    scaling_factor=Only(1.0),
    encoder_causal=Field("encoder_causal", True),
    spatial_compression_ratio=Value(None, int | None),
    temporal_compression_ratio=Value(None, int | None),
)
_OPTIONS = dict(
    inputs=lambda module, config: (example(1, 2 * module.factor, 2 * module.factor, 3),),
    names=_names,
    convert=_convert,
    invert=_invert,
    adapt=set_moments,
    pack=lambda module, variables: add_moments(module, variables, module.latent_channels),
    ignore=lambda name, tensor: name in MOMENTS.values(),
)
AUTOENCODER_LTX = Published(
    DIFFUSERS,
    "AutoencoderKLLTXVideo",
    AutoencoderLTX,
    entries=_SHARED_ENTRIES
    | dict(
        block_out_channels=[128, 256, 512, 512],
        down_block_types=[_PLAIN] * 4,
        decoder_block_out_channels=Field("decoder_widths", [128, 256, 512, 512]),
        layers_per_block=Field("blocks", [4, 3, 3, 3, 4], kind=list[int]),
        decoder_layers_per_block=Field("decoder_blocks", [4, 3, 3, 3, 4], kind=list[int]),
        spatio_temporal_scaling=[True, True, True, False],
        decoder_spatio_temporal_scaling=[True, True, True, False],
        decoder_inject_noise=Field("noise", [False] * 5),
        downsample_type=["conv"] * 4,
        upsample_residual=Field("upsample_residual", [False] * 4),
        upsample_factor=Field("upsample_factor", [1] * 4, kind=list[int]),
        timestep_conditioning=Field("takes_time", False),
        decoder_causal=Field("decoder_causal", False),
    ),
    build=_build,
    config=_config,
    examples=(
        _SMALL | dict(decoder_causal=True),
        _SMALL
        | dict(block_out_channels=[4, 8, 8], down_block_types=[_SHUFFLED] * 2)
        | dict(downsample_type=["temporal", "spatial"], spatio_temporal_scaling=[True, True])
        | dict(decoder_block_out_channels=[4, 8], timestep_conditioning=True)
        | dict(upsample_factor=[1, 2], upsample_residual=[False, True])
        | dict(decoder_spatio_temporal_scaling=[False, True], decoder_inject_noise=[True] * 3),
    ),
    **_OPTIONS,
)


def _build_second(config: Config) -> dict[str, Any]:
    """Return the fields of LTX-2's autoencoder that correspond to no single entry."""
    widths, kinds = config["block_out_channels"], config["downsample_type"]
    levels, decoder = len(widths), len(config["decoder_block_out_channels"])
    _expect_lengths(config, levels, "down_block_types", "downsample_type")
    _expect_lengths(config, levels, "spatio_temporal_scaling")
    _expect_lengths(config, levels + 1, "layers_per_block")
    _expect_lengths(config, decoder, "decoder_spatio_temporal_scaling", "upsample_type")
    _expect_lengths(config, decoder, "upsample_residual", "upsample_factor")
    _expect_lengths(config, decoder + 1, "decoder_layers_per_block", "decoder_inject_noise")
    for name in ("downsample_type", "upsample_type"):
        for kind in config[name]:
            expect({name: kind}, name, *_SHUFFLES)
    for name, supported in (("down_block_types", _SECOND), ("decoder_inject_noise", False)):
        for value in config[name]:
            expect({name: value}, name, supported)
    reflects = config["decoder_spatial_padding_mode"] == "reflect"
    return dict(
        widths=(config["latent_channels"], *widths),
        downsample=_where(config["spatio_temporal_scaling"], kinds),
        # This list alone begins with the coarsest level.
        upsample=_where(config["decoder_spatio_temporal_scaling"], config["upsample_type"][::-1]),
        decoder_reflect=reflects,
        **_no_moments(config),
    )


def _config_second(module: AutoencoderLTX2, variables: PyTree) -> dict[str, Any]:
    first, *widths = module.widths
    if first != module.latent_channels or module.takes_time:
        given = f"widths={module.widths}, takes_time={module.takes_time}"
        raise ValueError(f"{given}: the class begins with latent_channels, and takes no time")
    kind = lambda end: end or "spatiotemporal"
    return dict(
        block_out_channels=widths,
        down_block_types=[_SECOND] * len(widths),
        spatio_temporal_scaling=[end is not None for end in module.downsample],
        downsample_type=[kind(end) for end in module.downsample],
        decoder_spatio_temporal_scaling=[end is not None for end in module.upsample],
        upsample_type=[kind(end) for end in module.upsample[::-1]],
        decoder_spatial_padding_mode="reflect" if module.decoder_reflect else "zeros",
        spatial_compression_ratio=module.factor,
        temporal_compression_ratio=module.temporal_factor,
    )


_SMALL_SECOND = dict(
    latent_channels=2,
    block_out_channels=[4, 8],
    down_block_types=[_SECOND] * 2,
    spatio_temporal_scaling=[True] * 2,
    downsample_type=["temporal", "spatial"],
    layers_per_block=[1, 1, 2],
    decoder_block_out_channels=[4, 8],
    decoder_spatio_temporal_scaling=[True] * 2,
    decoder_layers_per_block=[1, 1, 2],
    decoder_inject_noise=[False] * 3,
    upsample_type=["spatial", "temporal"],
    upsample_residual=[False, True],
    upsample_factor=[1, 2],
    patch_size=2,
)
AUTOENCODER_LTX2 = Published(
    DIFFUSERS,
    "AutoencoderKLLTX2Video",
    AutoencoderLTX2,
    entries=_SHARED_ENTRIES
    | dict(
        block_out_channels=[256, 512, 1024, 2048],
        down_block_types=[_SECOND] * 4,
        decoder_block_out_channels=Field("decoder_widths", [256, 512, 1024]),
        layers_per_block=Field("blocks", [4, 6, 6, 2, 2], kind=list[int]),
        decoder_layers_per_block=Field("decoder_blocks", [5, 5, 5, 5], kind=list[int]),
        spatio_temporal_scaling=[True] * 4,
        decoder_spatio_temporal_scaling=[True] * 3,
        decoder_inject_noise=Field("noise", [False] * 4),
        downsample_type=["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        upsample_type=["spatiotemporal"] * 3,
        upsample_residual=Field("upsample_residual", [True] * 3),
        upsample_factor=Field("upsample_factor", [2] * 3, kind=list[int]),
        timestep_conditioning=Only(False),
        decoder_causal=Field("decoder_causal", True),
        encoder_spatial_padding_mode=Only("zeros"),
        decoder_spatial_padding_mode=Only("reflect", "zeros"),
    ),
    build=_build_second,
    config=_config_second,
    examples=(_SMALL_SECOND, _SMALL_SECOND | dict(decoder_spatial_padding_mode="zeros")),
    **_OPTIONS,
)
PUBLISHED = (AUTOENCODER_LTX, AUTOENCODER_LTX2)
