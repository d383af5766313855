"""EnCodec's causal codec of 24 kHz as transformers publishes it."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.encodec import EnCodec
from genjax.nn.quantizers import ResidualVectorQuantizer
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import Names, from_torch, to_torch
from genjax.pretrained.published import TRANSFORMERS, Config, Published, example

_NEW = dict(gain="parametrizations.weight.original0", kernel="parametrizations.weight.original1")
_OLD = dict(gain="weight_g", kernel="weight_v")  # of files before PyTorch 2.0
_UNIT = dict(conv1="block.1", conv2="block.3", shortcut="shortcut")
_CODEBOOK = ("embed", "embed_avg", "cluster_size", "inited")


def _bandwidth(config: Config) -> int:
    """Return the bits per second of a level of codes, as transformers rounds them."""
    frame_rate = -(-config["sampling_rate"] // int(np.prod(config["upsampling_ratios"])))
    return frame_rate * int(np.log2(config["codebook_size"]))


def _build(config: Config) -> dict[str, Any]:
    expect(config, "codebook_dim", config["hidden_size"])
    levels = int(1000 * config["target_bandwidths"][-1] // _bandwidth(config))
    quantizer = ResidualVectorQuantizer(levels, config["codebook_size"], config["hidden_size"])
    return dict(quantizer=quantizer, strides=tuple(config["upsampling_ratios"])[::-1])


def _config(module: EnCodec, variables: PyTree) -> dict[str, Any]:
    quantizer = module.quantizer
    expect(dict(quantizer=type(quantizer)), "quantizer", ResidualVectorQuantizer)
    expect(vars(quantizer), "ema_decay", None)
    config = dict(
        upsampling_ratios=list(module.strides)[::-1],
        sampling_rate=module.sample_rate,
        codebook_size=quantizer.num_codes,
        codebook_dim=quantizer.features,
        hidden_size=quantizer.features,
    )
    bandwidth = quantizer.num_levels * _bandwidth(config) / 1000
    if 1000 * bandwidth // _bandwidth(config) < quantizer.num_levels:  # rounded down
        bandwidth = math.nextafter(bandwidth, math.inf)
    return config | dict(target_bandwidths=[bandwidth])


def _names(module: EnCodec, tensors: Collection[str]) -> Callable[[str], Names]:
    weights = _OLD if any(name.endswith("weight_g") for name in tensors) else _NEW

    def name(variable: str) -> Names:
        _, side, layer, *words = variable.split("/")
        if side == "quantizer":
            codebook = f"quantizer.layers.{layer.removeprefix('levels_')}.codebook"
            return tuple(f"{codebook}.{part}" for part in _CODEBOOK)
        place = f"{side}.layers.{_place(module, side, layer)}"
        if layer == "lstm":
            number, kind, leaf = re.fullmatch(r"layer_(\d+)_(\w+)_(\w+)", words[0]).groups()
            leaf = "weight" if leaf == "kernel" else "bias"
            return f"{place}.lstm.{leaf}_{dict(input='ih', hidden='hh')[kind]}_l{number}"
        if words[0] in _UNIT:
            place = f"{place}.{_UNIT[words[0]]}"
        return f"{place}.conv.{weights.get(words[-1], words[-1])}"

    return name


def _place(module: EnCodec, side: str, layer: str) -> int:
    """Return the number of a layer in the list of either network's layers, ELUs included."""
    count, size = len(module.strides), module.units + 2
    start = dict(encoder=1, decoder=2)[side]  # of the blocks
    if layer in ("conv_in", "lstm", "conv_out"):
        lstm, last = (1 + count * size, 3 + count * size), (1, 3 + count * size)
        last = dict(encoder=lstm, decoder=last)[side]
        return dict(conv_in=0, lstm=last[0], conv_out=last[1])[layer]
    block, unit = re.fullmatch(r"block(\d+)_(?:conv|unit(\d+))", layer).groups()
    first = start + int(block) * size
    if side == "encoder":
        return first + (module.units + 1 if unit is None else int(unit))
    return first + (1 if unit is None else 2 + int(unit))


def _is_transposed(variable: str) -> bool:
    return bool(re.search(r"decoder/block\d+_conv/kernel", variable))


def _convert(module: EnCodec, variable: str, *tensors: np.ndarray) -> np.ndarray:
    tensor = tensors[0]  # of a codebook, the codes themselves
    if _is_transposed(variable):  # [in out taps]
        return tensor.transpose(2, 0, 1)
    return tensor.reshape(-1) if variable.endswith("gain") else from_torch(variable, tensor)


def _invert(module: EnCodec, variable: str, array: np.ndarray) -> Any:
    if variable.startswith("params/quantizer"):  # averages of one latent for each code
        ones = np.ones(len(array), array.dtype)
        return array, array, ones, ones[:1]
    if _is_transposed(variable):
        return array.transpose(1, 2, 0)
    return array.reshape(-1, 1, 1) if variable.endswith("gain") else to_torch(variable, array)


ENCODEC_MODEL = Published(
    TRANSFORMERS,
    "EncodecModel",
    EnCodec,
    entries=dict(
        num_filters=Field("width", 32),
        num_residual_layers=Field("units", 1),
        audio_channels=Field("channels", 1),
        sampling_rate=Field("sample_rate", 24_000),
        upsampling_ratios=Value([8, 5, 4, 2], list[int]),
        target_bandwidths=Value([1.5, 3.0, 6.0, 12.0, 24.0], list[float]),
        codebook_size=1024,
        codebook_dim=Value(None, int | None),
        hidden_size=128,
        norm_type=Only("weight_norm"),
        pad_mode=Only("reflect"),
        use_causal_conv=Only(True),
        use_conv_shortcut=Only(True),
        normalize=Only(False),
        trim_right_ratio=Only(1.0),
        kernel_size=Only(7),
        last_kernel_size=Only(7),
        residual_kernel_size=Only(3),
        dilation_growth_rate=Only(2),
        num_lstm_layers=Only(2),
        compress=Only(2),
        chunk_length_s=Only(None),
        overlap=Only(None),
    ),
    build=_build,
    config=_config,
    inputs=lambda module, config: (example(7 * module.factor, module.channels),),
    names=_names,
    convert=_convert,
    invert=_invert,
    examples=(
        dict(num_filters=4, hidden_size=6, upsampling_ratios=[4, 2], codebook_size=8)
        | dict(codebook_dim=6, sampling_rate=800, target_bandwidths=[0.6]),
    ),
)
PUBLISHED = (ENCODEC_MODEL,)
