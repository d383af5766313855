"""Deep-compression autoencoders from the folders that diffusers writes (`AutoencoderDC`)."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from genjax.models.autoencoders.autoencoder_dc import ACTIVATIONS, AutoencoderDC, Stage
from genjax.pretrained.autoencoder_kl import one_for_all
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import load_variables, save_variables

_BLOCKS = {"ResBlock": "residual", "EfficientViTBlock": "efficient_vit"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_SAME = {activation: activation for activation in ACTIVATIONS}
# Theirs for ours, where the words of a path differ: patterns of whole words.
_NAMES = {
    r"attention": "attn",
    r"gated_conv": "conv_out",
    r"expand": "conv_inverted",
    r"depth": "conv_depth",
    r"project": "conv_point",
    r"scale(\d+)_depth": r"to_qkv_multiscale.\1.proj_in",
    r"scale(\d+)_point": r"to_qkv_multiscale.\1.proj_out",
    r"kernel|scale": "weight",
    r"mean": "running_mean",
    r"var": "running_var",
    r"count": "num_batches_tracked",
}


def _translate(config: dict[str, Any], key: str, value: Any, known: dict[str, str]) -> str:
    if value not in known:
        raise ValueError(f"{key}={config[key]!r} is not supported; what is: {', '.join(known)}")
    return known[value]


def _stages(
    config: dict[str, Any], side: str, norms: str | None, activations: str | None
) -> tuple[Stage, ...]:
    """`norms` and `activations` are keys of the configuration; where None, it has none: RMS norm and SiLU."""
    channels = config[f"{side}_block_out_channels"]
    of_each = lambda value: [value] * len(channels) if isinstance(value, str) else value
    blocks = of_each(config[f"{side}_block_types"])
    norm = of_each(config[norms] if norms else "rms_norm")
    activation = of_each(config[activations] if activations else "silu")
    return tuple(
        Stage(
            channels[i],
            config[f"{side}_layers_per_block"][i],
            _translate(config, f"{side}_block_types", blocks[i], _BLOCKS),
            # Theirs are given for blocks of both kinds and used by one.
            tuple(config[f"{side}_qkv_multiscales"][i]) if blocks[i] == "EfficientViTBlock" else (),
            _translate(config, norms, norm[i], _NORMS) if norms else "rms",
            _translate(config, activations, activation[i], _SAME) if activations else "silu",
        )
        for i in range(len(channels))
    )


def from_config(config: dict[str, Any]) -> AutoencoderDC:
    """The module of diffusers' configuration.

    Raises:
        ValueError: a value that is not supported, by name.
    """
    resize = lambda key, rearranging, plain: _translate(
        config, key, config[key], {rearranging: "", plain: "plain"}
    )
    return AutoencoderDC(
        config["latent_channels"],
        _stages(config, "encoder", None, None),
        _stages(config, "decoder", "decoder_norm_types", "decoder_act_fns"),
        image_channels=config["in_channels"],
        head_features=config["attention_head_dim"],
        rearranging_downsample=not resize("downsample_block_type", "pixel_unshuffle", "conv"),
        rearranging_upsample=not resize("upsample_block_type", "pixel_shuffle", "interpolate"),
        # Weights that were published before diffusers had these.
        encoder_shortcut=config.get("encoder_out_shortcut", True),
        decoder_shortcut=config.get("decoder_in_shortcut", True),
        out_activation=_translate(
            config, "decoder_conv_act_fn", config.get("decoder_conv_act_fn", "relu"), _SAME
        ),
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _renaming(module: AutoencoderDC) -> Callable[[str], str]:
    def rename(variable: str) -> str:
        _, side, *words = variable.split("/")
        if match := re.fullmatch(r"stage(\d+)_(block(\d+)|downsample|upsample)", words[0]):
            stage = int(match[1])
            stages = module.encoder_stages if side == "encoder" else module.decoder_stages
            # Blocks are counted with what changes the resolution: after them in the encoder, before in the
            # decoder.
            upsampled = side == "decoder" and stage + 1 < len(stages)
            place = {"downsample": stages[stage].num_blocks, "upsample": 0}.get(match[2])
            place = int(match[3]) + upsampled if place is None else place
            words[0] = f"{'down' if side == 'encoder' else 'up'}_blocks.{stage}.{place}"
        if words[-2:-1] == ["norm"] and "attention" in words:
            words[-2] = "norm_out"
        for pattern, name in _NAMES.items():
            words = [re.sub(f"^(?:{pattern})$", name, word) for word in words]
        return ".".join([side, *words])

    return rename


def load(
    folder: str | os.PathLike, abstract: Callable = lambda expected: expected
) -> tuple[AutoencoderDC, Any]:
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
    counter = lambda name, tensor: name.endswith("num_batches_tracked")
    return module, load_variables(folder, abstract(expected), _renaming(module), ignore=counter)


def save(folder: str | os.PathLike, module: AutoencoderDC, variables: Any) -> None:
    """Writes what `load` and diffusers read.

    Raises:
        ValueError: latents have a mean or more than one deviation, or stages of the encoder another norm or activation
            than RMS norm and SiLU, by name.
    """
    plain = tuple(replace(stage, norm="rms", activation="silu") for stage in module.encoder_stages)
    expect(vars(module), "encoder_stages", plain)
    expect(vars(module), "latent_mean", (0.0,))
    blocks, norms = ({ours: theirs for theirs, ours in names.items()} for names in (_BLOCKS, _NORMS))
    config = dict(
        _class_name="AutoencoderDC",
        in_channels=module.image_channels,
        latent_channels=module.latent_channels,
        attention_head_dim=module.head_features,
        downsample_block_type="pixel_unshuffle" if module.rearranging_downsample else "conv",
        upsample_block_type="pixel_shuffle" if module.rearranging_upsample else "interpolate",
        decoder_norm_types=[norms[stage.norm] for stage in module.decoder_stages],
        decoder_act_fns=[stage.activation for stage in module.decoder_stages],
        encoder_out_shortcut=module.encoder_shortcut,
        decoder_in_shortcut=module.decoder_shortcut,
        decoder_conv_act_fn=module.out_activation,
        scaling_factor=1 / one_for_all(module, "latent_deviation"),
    )
    for side, stages in (("encoder", module.encoder_stages), ("decoder", module.decoder_stages)):
        config |= {
            f"{side}_block_types": [blocks[stage.block] for stage in stages],
            f"{side}_block_out_channels": [stage.channels for stage in stages],
            f"{side}_layers_per_block": [stage.num_blocks for stage in stages],
            f"{side}_qkv_multiscales": [[*stage.scales] for stage in stages],
        }
    # Theirs also count steps of training, to no effect on what is trained; without the counts diffusers warns.
    statistics = flatten_dict(variables.get("batch_stats", {}), sep="/")
    counters = {
        name.removesuffix("mean") + "count": np.int64(0) for name in statistics if name.endswith("/mean")
    }
    save_variables(folder, config, variables | {"batch_stats": statistics | counters}, _renaming(module))
