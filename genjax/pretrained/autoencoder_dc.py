"""Deep-compression autoencoders as diffusers publishes them."""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_dc import ACTIVATIONS, AutoencoderDC, Stage
from genjax.pretrained.autoencoder_kl import moments, smallest_image
from genjax.pretrained.configuration import Field, Value, expect
from genjax.pretrained.layouts import replace_words
from genjax.pretrained.published import DIFFUSERS, Config, Published

_SIDES = ("encoder", "decoder")
_BLOCKS = {"ResBlock": "residual", "EfficientViTBlock": "efficient_vit"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_DOWNSAMPLES = {"pixel_unshuffle": True, "conv": False}
_UPSAMPLES = {"pixel_shuffle": True, "interpolate": False}
_WORDS = {
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


def _values_by_stage(config: Config, name: str, known: Collection[str]) -> list[str]:
    """Return an entry's value for each stage; a single value stands for all stages.

    Raises:
        ValueError: a value is unknown.
    """
    values = config[name]
    if isinstance(values, str):
        values = [values] * len(config[f"{name.partition('_')[0]}_block_out_channels"])
    for value in values:
        expect({name: value}, name, *known)
    return values


def _check_counts(config: Config) -> None:
    """Check that the entries of a side have a value for each of its stages, or one for all.

    Raises:
        ValueError: an entry has another number of values.
    """
    for side in _SIDES:
        channels = config[f"{side}_block_out_channels"]
        for name, values in config.items():
            if (
                name.startswith(f"{side}_")
                and isinstance(values, list)
                and len(values) != len(channels)
            ):
                stages = f"{side}_block_out_channels={channels} {len(channels)}"
                raise ValueError(f"{name}={values} has {len(values)} stages; {stages}")


def _stages(config: Config, side: str, styles: list[dict[str, str]]) -> tuple[Stage, ...]:
    fields = (
        config[f"{side}_block_out_channels"],
        config[f"{side}_layers_per_block"],
        [_BLOCKS[block] for block in _values_by_stage(config, f"{side}_block_types", _BLOCKS)],
        map(tuple, config[f"{side}_qkv_multiscales"]),
    )
    stages = [Stage(*values, **style) for *values, style in zip(*fields, styles, strict=True)]
    # The configuration gives scales to both kinds of blocks, and only one kind uses them.
    return tuple(s if s.block == "efficient_vit" else replace(s, scales=()) for s in stages)


def _build(config: Config) -> dict[str, Any]:
    _check_counts(config)
    norms = _values_by_stage(config, "decoder_norm_types", _NORMS)
    activations = _values_by_stage(config, "decoder_act_fns", ACTIVATIONS)
    styles = [
        dict(norm=_NORMS[norm], activation=activation)
        for norm, activation in zip(norms, activations, strict=True)
    ]
    return dict(
        encoder_stages=_stages(config, "encoder", [{}] * len(config["encoder_block_out_channels"])),
        decoder_stages=_stages(config, "decoder", styles),
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _config(module: AutoencoderDC, variables: PyTree) -> dict[str, Any]:
    plain = tuple(replace(stage, norm="rms", activation="silu") for stage in module.encoder_stages)
    expect(vars(module), "encoder_stages", plain)
    expect(vars(module), "latent_mean", (0.0,))
    blocks, norms = ({ours: name for name, ours in names.items()} for names in (_BLOCKS, _NORMS))
    config = dict(
        decoder_norm_types=[norms[stage.norm] for stage in module.decoder_stages],
        decoder_act_fns=[stage.activation for stage in module.decoder_stages],
        scaling_factor=1 / moments(module, "latent_deviation", 1)[0],
    )
    for side in _SIDES:
        stages = getattr(module, f"{side}_stages")
        config |= {
            f"{side}_block_types": [blocks[stage.block] for stage in stages],
            f"{side}_block_out_channels": [stage.channels for stage in stages],
            f"{side}_layers_per_block": [stage.num_blocks for stage in stages],
            f"{side}_qkv_multiscales": [[*stage.scales] for stage in stages],
        }
    return config


def _add_counters(module: AutoencoderDC, variables: PyTree) -> PyTree:
    """Add counts of training steps. They have no effect, but diffusers warns without them."""
    statistics = flatten_dict(variables.get("batch_stats", {}), sep="/")
    means = [name for name in statistics if name.endswith("/mean")]
    counters = {name.removesuffix("mean") + "count": np.int64(0) for name in means}
    return {**variables, "batch_stats": statistics | counters}


def _names(module: AutoencoderDC, tensors: Collection[str]) -> Callable[[str], str]:
    def name(variable: str) -> str:
        _, side, *words = variable.split("/")
        if match := re.fullmatch(r"stage(\d+)_(block(\d+)|downsample|upsample)", words[0]):
            stage = int(match[1])
            stages = module.encoder_stages if side == "encoder" else module.decoder_stages
            # Blocks and the change of resolution share one count. The change comes after the
            # blocks in the encoder, and before the blocks in the decoder.
            upsampled = side == "decoder" and stage + 1 < len(stages)
            place = {"downsample": stages[stage].num_blocks, "upsample": 0}.get(match[2])
            place = int(match[3]) + upsampled if place is None else place
            words[0] = f"{'down' if side == 'encoder' else 'up'}_blocks.{stage}.{place}"
        if words[-2:-1] == ["norm"] and "attention" in words:
            words[-2] = "norm_out"
        return ".".join([side, *replace_words(words, _WORDS)])

    return name


def _for_each_side(**entries: Any) -> dict[str, Any]:
    return {f"{side}_{name}": value for side in _SIDES for name, value in entries.items()}


_SMALL = (
    _for_each_side(block_types=["ResBlock", "EfficientViTBlock"], block_out_channels=[8, 16])
    | _for_each_side(layers_per_block=[1, 1], qkv_multiscales=[[], [3]])
    | dict(decoder_norm_types=["batch_norm", "rms_norm"], decoder_act_fns=["relu", "silu"])
    | dict(latent_channels=4, attention_head_dim=4, scaling_factor=0.5)
)
AUTOENCODER_DC = Published(
    DIFFUSERS,
    "AutoencoderDC",
    AutoencoderDC,
    entries=_for_each_side(
        block_types=Value("ResBlock", str | list[str]),
        block_out_channels=[128, 256, 512, 512, 1024, 1024],
        qkv_multiscales=[[], [], [], [5], [5], [5]],
    )
    | dict(
        in_channels=Field("image_channels", 3),
        latent_channels=Field("latent_channels", 32),
        attention_head_dim=Field("head_features", 32),
        encoder_layers_per_block=[2, 2, 2, 3, 3, 3],
        decoder_layers_per_block=[3] * 6,
        downsample_block_type=Field("rearranging_downsample", "pixel_unshuffle", _DOWNSAMPLES),
        upsample_block_type=Field("rearranging_upsample", "pixel_shuffle", _UPSAMPLES),
        decoder_norm_types=Value("rms_norm", str | list[str]),
        decoder_act_fns=Value("silu", str | list[str]),
        decoder_conv_act_fn=Field("out_activation", "relu", dict(relu="relu", silu="silu")),
        encoder_out_shortcut=Field("encoder_shortcut", True),
        decoder_in_shortcut=Field("decoder_shortcut", True),
        scaling_factor=1.0,
    ),
    build=_build,
    config=_config,
    inputs=smallest_image,
    names=_names,
    pack=_add_counters,
    ignore=lambda name, tensor: name.endswith("num_batches_tracked"),
    examples=(
        _SMALL,
        _SMALL | dict(downsample_block_type="conv", upsample_block_type="interpolate"),
    ),
)
PUBLISHED = (AUTOENCODER_DC,)
