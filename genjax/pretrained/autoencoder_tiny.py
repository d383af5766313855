"""Tiny autoencoders as diffusers publishes them."""

import re
from collections.abc import Callable, Collection
from typing import Any

from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from genjax.pretrained.autoencoder_kl import moments, smallest_image
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.published import DIFFUSERS, Config, Published


def _build(config: Config) -> dict[str, Any]:
    width, *_ = config["encoder_block_out_channels"]
    for side in ("encoder", "decoder"):
        levels = len(config[f"num_{side}_blocks"])
        expect(config, f"{side}_block_out_channels", [width] * levels)
    expect(config, "out_channels", config["in_channels"])
    return dict(
        width=width,
        latent_mean=(config["shift_factor"],),
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _config(module: AutoencoderTiny, variables: PyTree) -> dict[str, Any]:
    return dict(
        out_channels=module.image_channels,
        encoder_block_out_channels=[module.width] * len(module.encoder_blocks),
        decoder_block_out_channels=[module.width] * len(module.decoder_blocks),
        shift_factor=moments(module, "latent_mean", 1)[0],
        scaling_factor=1 / moments(module, "latent_deviation", 1)[0],
    )


def _names(module: AutoencoderTiny, tensors: Collection[str]) -> Callable[[str], str]:
    """Number our layers as diffusers does, whose sequences also count layers without weights."""
    encoder, decoder = ["conv_in"], ["conv_in", "activation"]
    for i, num_blocks in enumerate(module.encoder_blocks):
        encoder += [f"stage{i}_downsample"] * (i > 0)
        encoder += [f"stage{i}_block{j}" for j in range(num_blocks)]
    for i, num_blocks in enumerate(module.decoder_blocks):
        decoder += [f"stage{i}_block{j}" for j in range(num_blocks)]
        decoder += ["repeat", f"stage{i}_upsample"] * (i + 1 < len(module.decoder_blocks))
    sides = {"encoder": [*encoder, "conv_out"], "decoder": [*decoder, "conv_out"]}

    def name(variable: str) -> str:
        _, side, layer, *words = variable.split("/")
        # A block's own sequence has an activation between two convolutions.
        words = [re.sub(r"^conv(\d)$", lambda m: f"conv.{2 * int(m[1])}", word) for word in words]
        place = f"{side}.layers.{sides[side].index(layer)}"
        return ".".join([place, *words]).replace("kernel", "weight")

    return name


AUTOENCODER_TINY = Published(
    DIFFUSERS,
    "AutoencoderTiny",
    AutoencoderTiny,
    entries=dict(
        in_channels=Field("image_channels", 3),
        out_channels=3,
        encoder_block_out_channels=[64] * 4,
        decoder_block_out_channels=[64] * 4,
        act_fn=Only("relu"),
        upsample_fn=Only("nearest"),
        latent_channels=Field("latent_channels", 4),
        upsampling_scaling_factor=Only(2),
        num_encoder_blocks=Field("encoder_blocks", [1, 3, 3, 3]),
        num_decoder_blocks=Field("decoder_blocks", [3, 3, 3, 1]),
        latent_magnitude=Field("latent_magnitude", 3.0),
        latent_shift=Field("latent_shift", 0.5),
        scaling_factor=1.0,
        shift_factor=0.0,
    ),
    unused=("block_out_channels", "force_upcast"),
    build=_build,
    config=_config,
    inputs=smallest_image,
    names=_names,
    examples=(
        dict(encoder_block_out_channels=[4, 4], decoder_block_out_channels=[4, 4])
        | dict(num_encoder_blocks=[1, 2], num_decoder_blocks=[2, 1], latent_channels=3)
        | dict(shift_factor=0.5, scaling_factor=0.25),
    ),
)
PUBLISHED = (AUTOENCODER_TINY,)
