"""What diffusers' DiT and PixArt have in common: both are published as its former `Transformer2DModel`."""

import json
import os
from typing import Any

import flax.linen as nn
import numpy as np

from genjax.pretrained.configuration import expect, read_config
from genjax.pretrained.safetensors_io import from_torch, to_torch

_LEGACY_CLASS = "Transformer2DModel"
# Entries with one value that is supported, then those of no consequence to images in patches or to inference.
_FIXED = dict(
    activation_fn="gelu-approximate",
    attention_bias=True,
    norm_elementwise_affine=False,
    double_self_attention=False,
    only_cross_attention=False,
    attention_type="default",
    num_vector_embeds=None,
)
_WITHOUT_EFFECT = dict(dropout=0.0, norm_num_groups=32, upcast_attention=False, use_linear_projection=False)
_SIZES = dict(
    num_attention_heads=16,
    attention_head_dim=72,
    in_channels=4,
    num_layers=28,
    patch_size=2,
    num_embeds_ada_norm=1000,
)
LEAVES = {"kernel": "weight", "embedding": "weight", "bias": "bias"}


def read_transformer_config(
    folder: str | os.PathLike, class_name: str, norm_type: str, defaults: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of a folder, completed by `defaults` and what is common to both classes.

    Raises:
        ValueError: another class, or an entry that is not known or not supported, by name.
    """
    with open(os.path.join(folder, "config.json")) as file:
        published = json.load(file).get("_class_name") == _LEGACY_CLASS
    fixed = _FIXED | dict(norm_type=norm_type)
    config = read_config(
        folder,
        _LEGACY_CLASS if published else class_name,
        _WITHOUT_EFFECT | _SIZES | fixed | defaults,
    )
    for name, value in fixed.items():
        expect(config, name, value)
    return config


def transformer_config(
    class_name: str, norm_type: str, module: nn.Module, variables: Any, **entries: Any
) -> dict[str, Any]:
    """The configuration by which diffusers opens what `module` and `variables` are saved as.

    Raises:
        ValueError: the module has what theirs cannot have.
    """
    for name, value in dict(mlp_ratio=4.0, time_scale=1000.0).items():
        check(module, name, value)
    if module.base_size is None:
        raise ValueError(
            "diffusers scales positions to a base size, this module has none; where images are of one size "
            "save module.clone(base_size=size // patch_size)"
        )
    params, patch = variables["params"], module.patch_size**2
    return dict(
        _class_name=class_name,
        norm_type=norm_type,
        activation_fn=_FIXED["activation_fn"],
        attention_bias=True,
        norm_elementwise_affine=False,
        num_attention_heads=module.num_heads,
        attention_head_dim=module.width // module.num_heads,
        in_channels=params["patch_embedding"]["kernel"].shape[0] // patch,
        out_channels=params["head"]["bias"].shape[0] // patch,
        num_layers=module.depth,
        patch_size=module.patch_size,
        sample_size=module.base_size * module.patch_size,
        **entries,
    )


def check(module: nn.Module, name: str, value: float) -> None:
    """
    Raises:
        ValueError: a field of `module` has not the value that it always has in diffusers.
    """
    if getattr(module, name) != value:
        raise ValueError(
            f"{name}={getattr(module, name)!r} cannot be saved for diffusers, where it is {value!r} always"
        )


def convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Patches: by a convolution `[width, channel, row, column]`; ours are features (row, column, channel)."""
    if variable == "params/patch_embedding/kernel":
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return from_torch(variable, tensor)


def invert(patch_size: int, variable: str, array: np.ndarray) -> np.ndarray:
    if variable == "params/patch_embedding/kernel":
        return array.reshape(patch_size, patch_size, -1, array.shape[-1]).transpose(3, 2, 0, 1)
    return to_torch(variable, array)
