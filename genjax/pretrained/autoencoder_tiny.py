"""Tiny autoencoders from the folders that diffusers writes (`AutoencoderTiny`)."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from genjax.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from genjax.pretrained.autoencoder_kl import one_for_all
from genjax.pretrained.safetensors_io import load_variables, save_variables

# What our module has no other value of.
_FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}


def from_config(config: dict[str, Any]) -> AutoencoderTiny:
    """The module of diffusers' configuration.

    Raises:
        ValueError: a value that is not supported, by name.
    """
    width = config["encoder_block_out_channels"][0]
    for side in ("encoder", "decoder"):
        key = f"{side}_block_out_channels"
        if set(config[key]) != {width}:
            raise ValueError(
                f"{key}={config[key]!r} is not supported; what is: one width, of the encoder's first block"
            )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:  # older folders lack some
            raise ValueError(f"{key}={config[key]!r} is not supported; what is: {value!r}")
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"out_channels={config['out_channels']} is not supported; what is: those of the input"
        )
    return AutoencoderTiny(
        config["latent_channels"],
        tuple(config["num_encoder_blocks"]),
        tuple(config["num_decoder_blocks"]),
        width,
        config["in_channels"],
        latent_magnitude=float(config["latent_magnitude"]),
        latent_shift=config["latent_shift"],
        latent_mean=(config.get("shift_factor", 0.0),),
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _renaming(module: AutoencoderTiny) -> Callable[[str], str]:
    """By the places of our layers in diffusers' sequences, which count layers without weights too."""
    encoder, decoder = ["conv_in"], ["conv_in", "activation"]
    for i, num_blocks in enumerate(module.encoder_blocks):
        encoder += [f"stage{i}_downsample"] * (i > 0)
        encoder += [f"stage{i}_block{j}" for j in range(num_blocks)]
    for i, num_blocks in enumerate(module.decoder_blocks):
        decoder += [f"stage{i}_block{j}" for j in range(num_blocks)]
        decoder += ["repeat", f"stage{i}_upsample"] * (i + 1 < len(module.decoder_blocks))
    sides = {"encoder": [*encoder, "conv_out"], "decoder": [*decoder, "conv_out"]}

    def rename(variable: str) -> str:
        _, side, layer, *words = variable.split("/")
        # In a block's own sequence there is an activation between two convolutions.
        words = [re.sub(r"^conv(\d)$", lambda match: f"conv.{2 * int(match[1])}", word) for word in words]
        place = f"{side}.layers.{sides[side].index(layer)}"
        return ".".join([place, *words]).replace("kernel", "weight")

    return rename


def load(
    folder: str | os.PathLike, abstract: Callable = lambda expected: expected
) -> tuple[AutoencoderTiny, Any]:
    """The module and its variables from `config.json` and `diffusion_pytorch_model.safetensors` in a folder.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: a value in the configuration that is not supported, by name; or one that lists all
            missing, extra and misshapen tensors.
    """
    folder = Path(folder)
    module = from_config(json.loads((folder / "config.json").read_text()))
    image = jax.ShapeDtypeStruct((1, module.factor, module.factor, module.image_channels), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), image)
    return module, load_variables(folder, abstract(expected), _renaming(module))


def save(folder: str | os.PathLike, module: AutoencoderTiny, variables: Any) -> None:
    """Writes what `load` and diffusers read.

    Raises:
        ValueError: moments of latents are not one for all channels, by name.
    """
    config = dict(
        _class_name="AutoencoderTiny",
        in_channels=module.image_channels,
        out_channels=module.image_channels,
        encoder_block_out_channels=[module.width] * len(module.encoder_blocks),
        decoder_block_out_channels=[module.width] * len(module.decoder_blocks),
        num_encoder_blocks=[*module.encoder_blocks],
        num_decoder_blocks=[*module.decoder_blocks],
        latent_channels=module.latent_channels,
        latent_magnitude=module.latent_magnitude,
        latent_shift=module.latent_shift,
        shift_factor=one_for_all(module, "latent_mean"),
        scaling_factor=1 / one_for_all(module, "latent_deviation"),
        **_FIXED,
    )
    save_variables(folder, config, variables, _renaming(module))
