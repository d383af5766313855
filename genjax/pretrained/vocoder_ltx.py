"""LTX-2's vocoders as diffusers publishes them."""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.vocoder_ltx import ExtendedVocoderLTX, VocoderLTX
from genjax.pretrained.configuration import Field, Only, Value, default_of, expect, kind_of
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import DIFFUSERS_LTX2, Config, Published, example

_WORDS = {
    r"level_(\d+)_upsample": r"upsamplers.\1",
    r"conv(\d)_(\d+)": r"convs\1.\2",
    r"activation(\d)_(\d+)": r"acts\1.\2",
    "activation_out": "act_out",
    "extension": "bwe_generator",
    **dict(alpha="act.alpha", beta="act.beta", kernel="weight"),
    **dict(doubling="upsample.filter", halving="downsample.filter"),
    **dict(transform_kernel="mel_stft.stft_fn.forward_basis", mel_kernel="mel_stft.mel_basis"),
}
_INVERSE = "mel_stft.stft_fn.inverse_basis"  # of the inverse transform, which nothing uses


def _names(module: Any, tensors: Collection[str]) -> Callable[[str], str]:
    parts = {"vocoder": module, "extension": module}
    if isinstance(module, ExtendedVocoderLTX):
        parts = dict(vocoder=module.vocoder, extension=module.extension)

    def name(variable: str) -> str:
        words = variable.split("/")[1:]  # without the collection
        if words == [_INVERSE]:
            return _INVERSE
        part = parts.get(words[0], module)
        for i, word in enumerate(words):
            if match := re.fullmatch(r"level_(\d+)_block_(\d+)", word):
                level, block = map(int, match.groups())
                words[i] = f"resnets.{level * len(part.block_kernel_sizes) + block}"
        return ".".join(replace_words(words, _WORDS))

    return name


def _convert(module: Any, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Turn filters into vectors, and the taps of transposed convolutions into reverse order."""
    if variable.endswith(("doubling", "halving")):
        return tensor.reshape(-1)
    if "upsample/kernel" in variable:
        return tensor.transpose(2, 0, 1)[::-1]
    return from_torch(variable, tensor)


def _invert(module: Any, variable: str, array: np.ndarray) -> np.ndarray:
    if variable.endswith(("doubling", "halving")):
        return array[None, None]
    if "upsample/kernel" in variable:
        return array[::-1].transpose(1, 2, 0)
    return to_torch(variable, array)


def _entries(width: int, kernel_sizes: list[int], strides: list[int], snake: bool) -> Config:
    """Return the entries of one vocoder; those with snakes are published without final layers."""
    activations = {"leaky_relu": False, "snakebeta": True}
    finals = (None, "tanh", "clamp") if snake else ("tanh", "clamp", None)
    return dict(
        in_channels=128,
        hidden_channels=Field("width", width),
        out_channels=Field("channels", 2),
        upsample_kernel_sizes=Field("kernel_sizes", kernel_sizes, kind=list[int]),
        upsample_factors=Field("strides", strides, kind=list[int]),
        resnet_kernel_sizes=Field("block_kernel_sizes", [3, 7, 11], kind=list[int]),
        resnet_dilations=Field("dilations", [[1, 3, 5]] * 3, kind=list[list[int]]),
        act_fn=Only(*sorted(activations, key=lambda name: activations[name] != snake)),
        leaky_relu_negative_slope=0.1,
        antialias=snake,
        antialias_ratio=Only(2),
        antialias_kernel_size=Only(12),
        final_act_fn=Only(*finals),
        final_bias=Field("final_bias", not snake),
    )


def _build(config: Config) -> dict[str, Any]:
    snake = config["act_fn"] == "snakebeta"
    expect(config, "antialias", snake)
    lengths = {
        name: len(config[name])
        for names in (
            ("upsample_kernel_sizes", "upsample_factors"),
            ("resnet_kernel_sizes", "resnet_dilations"),
        )
        for name in names
    }
    sizes = [*lengths.values()]
    if sizes[0] != sizes[1] or sizes[2] != sizes[3]:
        raise ValueError(f"pairs of lists have other lengths: {lengths}")
    slope = None if snake else config["leaky_relu_negative_slope"]
    return dict(slope=slope, final=config["final_act_fn"])


def _config(module: VocoderLTX, variables: PyTree) -> dict[str, Any]:
    snake = module.slope is None
    return dict(
        in_channels=variables["params"]["conv_in"]["kernel"].shape[1],
        act_fn="snakebeta" if snake else "leaky_relu",
        leaky_relu_negative_slope=0.1 if snake else module.slope,
        antialias=snake,
        final_act_fn=module.final,
    )


def _spectrogram(module: Any, config: Config) -> tuple:
    """Return the shortest spectrogram, whose channels and bins are the first layer's features."""
    channels = config["out_channels"]
    if config["in_channels"] % channels:
        numbers = f"in_channels={config['in_channels']}, out_channels={channels}"
        raise ValueError(f"{numbers}: every channel of the sound has equally many mel bins")
    return (example(1, config["in_channels"] // channels, channels),)


_SHARED = dict(names=_names, convert=_convert, invert=_invert, inputs=_spectrogram)
_SIZES = dict(out_channels=2, upsample_kernel_sizes=[7, 4], upsample_factors=[3, 2])
_SIZES |= dict(resnet_kernel_sizes=[3, 5], resnet_dilations=[[1, 2], [1, 3]])
_SMALL = dict(in_channels=6, hidden_channels=8, **_SIZES)
VOCODER = Published(
    DIFFUSERS_LTX2,
    "LTX2Vocoder",
    VocoderLTX,
    entries=_entries(1024, [16, 15, 8, 4, 4], [6, 5, 2, 2, 2], snake=False)
    | dict(output_sampling_rate=Field("sample_rate", 24_000)),
    build=_build,
    config=_config,
    examples=(_SMALL, _SMALL | dict(act_fn="snakebeta", antialias=True, final_act_fn="clamp")),
    **_SHARED,
)

_PREFIX = "bwe_"
_FIRST = _entries(1536, [11, 4, 4, 4, 4, 4], [5, 2, 2, 2, 2, 2], snake=True)
_SECOND = _entries(512, [12, 11, 4, 4, 4], [6, 5, 2, 2, 2], snake=True)


def _of_part(entry: Any) -> Any:
    """Return an entry of a part's as an entry that is no field of the whole."""
    return Value(default_of(entry), kind_of(entry)) if isinstance(entry, Field) else entry


def _build_extended(config: Config) -> dict[str, Any]:
    parts = {}
    for part, prefix, rate in (("vocoder", "", "input"), ("extension", _PREFIX, "output")):
        of_part = {name: config[prefix + name] for name in _FIRST}
        of_part |= dict(output_sampling_rate=config[f"{rate}_sampling_rate"])
        try:
            parts[part] = VOCODER.make(VOCODER.complete(of_part))
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from error
    expect(config, "window_length", config["filter_length"])
    numbers = config["num_mel_channels"] * config["out_channels"]
    expect(config, "bwe_in_channels", numbers)
    first, second = (parts[name].sample_rate for name in ("vocoder", "extension"))
    enlarged, expected = np.prod(parts["extension"].strides), config["hop_length"] * second / first
    if enlarged != expected or second % first:
        raise ValueError(
            f"bwe_upsample_factors={config['bwe_upsample_factors']} multiply by {enlarged}; "
            f"expected hop_length={config['hop_length']} times a whole {second} / {first}"
        )
    return parts


def _config_extended(module: ExtendedVocoderLTX, variables: PyTree) -> dict[str, Any]:
    of_part = lambda part: VOCODER.write(
        getattr(module, part), dict(params=variables["params"][part])
    )
    first, second = of_part("vocoder"), of_part("extension")
    rates = dict(
        input_sampling_rate=first.pop("output_sampling_rate"),
        output_sampling_rate=second.pop("output_sampling_rate"),
    )
    return (
        first
        | {_PREFIX + name: value for name, value in second.items()}
        | rates
        | dict(window_length=module.size)
    )


def _add_inverse(module: ExtendedVocoderLTX, variables: PyTree) -> PyTree:
    """Return variables with zeros for the inverse transform, which the class holds but not uses."""
    constants = variables["constants"]
    zeros = np.zeros_like(np.moveaxis(constants["transform_kernel"], 0, -1).swapaxes(0, 1))
    return {**variables, "constants": {**constants, _INVERSE: zeros}}


EXTENDED_VOCODER = Published(
    DIFFUSERS_LTX2,
    "LTX2VocoderWithBWE",
    ExtendedVocoderLTX,
    entries={name: _of_part(entry) for name, entry in _FIRST.items()}
    | {_PREFIX + name: _of_part(entry) for name, entry in _SECOND.items()}
    | dict(
        filter_length=Field("size", 512),
        hop_length=Field("hop", 80),
        num_mel_channels=Field("bins", 64),
        window_length=512,
        input_sampling_rate=16_000,
        output_sampling_rate=48_000,
    ),
    build=_build_extended,
    config=_config_extended,
    pack=_add_inverse,
    ignore=lambda name, tensor: name == _INVERSE,
    examples=(
        _SMALL
        | {_PREFIX + name: value for name, value in _SIZES.items()}
        | dict(bwe_in_channels=6, bwe_hidden_channels=8, bwe_upsample_factors=[3, 2])
        | dict(filter_length=8, window_length=8, hop_length=2, num_mel_channels=3),
    ),
    **_SHARED,
)
PUBLISHED = (VOCODER, EXTENDED_VOCODER)
