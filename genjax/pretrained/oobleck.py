"""Stable Audio Open's autoencoder as diffusers publishes it.

Weight normalization stays as two tensors, direction and gain, so that what is read is written.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from genjax.models.autoencoders.oobleck import AutoencoderOobleck
from genjax.pretrained.configuration import Field, expect
from genjax.pretrained.layouts import from_torch, replace_words, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

_WORDS = {
    r"level_(\d+)_unit_0": r"block.\1.res_unit1",
    r"level_(\d+)_unit_1": r"block.\1.res_unit2",
    r"level_(\d+)_unit_2": r"block.\1.res_unit3",
    r"level_(\d+)_snake": r"block.\1.snake1",
    r"level_(\d+)_downsample": r"block.\1.conv1",
    r"level_(\d+)_upsample": r"block.\1.conv_t1",
} | dict(conv_in="conv1", conv_out="conv2", snake_out="snake1", kernel="weight_v", gain="weight_g")


def _names(module: AutoencoderOobleck, tensors: Collection[str]) -> Callable[[str], str]:
    return lambda variable: ".".join(replace_words(variable.split("/")[1:], _WORDS))


def _is_per_channel(variable: str) -> bool:
    """Return whether a file holds a vector with axes of size 1, for α, β and the gains."""
    return variable.endswith(("alpha", "beta", "gain"))


def _convert(module: AutoencoderOobleck, variable: str, tensor: np.ndarray) -> np.ndarray:
    if _is_per_channel(variable):
        return tensor.reshape(-1)
    if variable.endswith("upsample/kernel"):
        return np.moveaxis(tensor, -1, 0)  # from [in out taps]
    return from_torch(variable, tensor)


def _invert(module: AutoencoderOobleck, variable: str, array: np.ndarray) -> np.ndarray:
    if variable.endswith("upsample/kernel"):
        return np.moveaxis(array, 0, -1)
    if not _is_per_channel(variable):
        return to_torch(variable, array)
    return array[:, None, None] if variable.endswith("gain") else array[None, :, None]


def _build(config: Config) -> dict[str, Any]:
    expect(config, "encoder_hidden_size", 2 * config["decoder_input_channels"])
    return {}


_SMALL = dict(encoder_hidden_size=6, decoder_channels=4, decoder_input_channels=3)
OOBLECK = Published(
    DIFFUSERS,
    "AutoencoderOobleck",
    AutoencoderOobleck,
    entries=dict(
        encoder_hidden_size=Field("width", 128),
        downsampling_ratios=Field("strides", [2, 4, 4, 8, 8], kind=list[int]),
        channel_multiples=Field("multiples", [1, 2, 4, 8, 16], kind=list[int]),
        decoder_channels=Field("decoder_width", 128),
        decoder_input_channels=Field("latent_channels", 64),
        audio_channels=Field("audio_channels", 2),
        sampling_rate=Field("sample_rate", 44_100),
    ),
    build=_build,
    inputs=lambda module, config: (example(module.factor, module.audio_channels),),
    names=_names,
    convert=_convert,
    invert=_invert,
    examples=(
        _SMALL | dict(downsampling_ratios=[2, 4], channel_multiples=[1, 2]),
        _SMALL
        | dict(downsampling_ratios=[4], channel_multiples=[3], audio_channels=1)
        | dict(sampling_rate=8000),
    ),
)
PUBLISHED = (OOBLECK,)
