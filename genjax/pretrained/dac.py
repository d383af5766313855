"""DAC's codecs of sound as transformers publishes them, with weight norm multiplied out."""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.dac import DAC
from genjax.nn.quantizers import FactorizedResidualQuantizer
from genjax.pretrained.configuration import Field, Value, expect
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import TRANSFORMERS, Config, Published, example

_WORDS = {
    **{"kernel": "weight", "conv_in": "conv1", "conv_out": "conv2", "snake_out": "snake1"},
    r"projections_(in|out)_(\d+)": r"quantizers.\2.\1_proj",
    r"codes_(\d+)": r"quantizers.\1.codebook.weight",
    r"block(\d+)_snake": r"block.\1.snake1",
}
_CONVOLUTIONS = {"encoder": "conv1", "decoder": "conv_t1"}


def _features(config: Config) -> int:
    return config["encoder_hidden_size"] * 2 ** len(config["downsampling_ratios"])


def _build(config: Config) -> dict[str, Any]:
    quantizer = FactorizedResidualQuantizer(
        config["n_codebooks"],
        config["codebook_size"],
        _features(config),
        config["codebook_dim"],
        config["quantizer_dropout"],
        weight_norm=False,
    )
    return dict(quantizer=quantizer, weight_norm=False)


def _config(module: DAC, variables: PyTree) -> dict[str, Any]:
    quantizer = module.quantizer
    expect(dict(quantizer=type(quantizer)), "quantizer", FactorizedResidualQuantizer)
    for each in (module, quantizer):
        expect(vars(each), "weight_norm", False)
    expect(vars(module), "channels", 1)
    config = dict(
        encoder_hidden_size=module.width,
        downsampling_ratios=list(module.strides),
        n_codebooks=quantizer.num_levels,
        codebook_size=quantizer.num_codes,
        codebook_dim=quantizer.width,
        quantizer_dropout=quantizer.dropout,
    )
    expect(dict(features=quantizer.features), "features", _features(config))
    return config


def _names(module: DAC, tensors: Collection[str]) -> Callable[[str], str]:
    def name(variable: str) -> str:
        _, side, *words = variable.split("/")
        block_words = {
            r"block(\d+)_conv": rf"block.\1.{_CONVOLUTIONS.get(side)}",
            **{rf"block(\d+)_unit{j}": rf"block.\1.res_unit{j + 1}" for j in range(3)},
        }
        return ".".join([side, *replace_words(words, _WORDS | block_words)])

    return name


def _is_transposed(variable: str) -> bool:
    return bool(re.search(r"decoder/block\d+_conv/kernel", variable))


def _convert(module: DAC, variable: str, tensor: np.ndarray) -> np.ndarray:
    if _is_transposed(variable):  # [in out taps]
        return tensor.transpose(2, 0, 1)
    return tensor.reshape(-1) if variable.endswith("alpha") else from_torch(variable, tensor)


def _invert(module: DAC, variable: str, array: np.ndarray) -> np.ndarray:
    if _is_transposed(variable):
        return array.transpose(1, 2, 0)
    return array.reshape(1, -1, 1) if variable.endswith("alpha") else to_torch(variable, array)


DAC_MODEL = Published(
    TRANSFORMERS,
    "DacModel",
    DAC,
    entries=dict(
        encoder_hidden_size=Field("width", 64),
        downsampling_ratios=Field("strides", [2, 4, 8, 8], kind=list[int]),
        decoder_hidden_size=Field("decoder_width", 1536),
        n_codebooks=9,
        codebook_size=1024,
        codebook_dim=8,
        quantizer_dropout=Value(0.0, float),
        sampling_rate=Field("sample_rate", 16_000),
    ),
    # Entries that follow from others, and the weights of the training's loss.
    unused=(
        *("hidden_size", "hop_length", "upsampling_ratios"),
        *("commitment_loss_weight", "codebook_loss_weight"),
    ),
    build=_build,
    config=_config,
    inputs=lambda module, config: (example(module.factor, 1),),
    names=_names,
    convert=_convert,
    invert=_invert,
    examples=(
        dict(encoder_hidden_size=4, decoder_hidden_size=16, downsampling_ratios=[2, 4])
        | dict(n_codebooks=2, codebook_size=8, codebook_dim=3, sampling_rate=8000),
    ),
)
PUBLISHED = (DAC_MODEL,)
