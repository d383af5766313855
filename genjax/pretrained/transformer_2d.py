"""The common parts of diffusers' DiT and PixArt, which were one class, `Transformer2DModel`."""

from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.published import Config

ENTRIES = dict(
    num_attention_heads=Field("num_heads", 16),
    attention_head_dim=72,
    in_channels=4,
    num_layers=Field("depth", 28),
    patch_size=Field("patch_size", 2),
    activation_fn=Only("gelu-approximate"),
    attention_bias=Only(True),
    norm_elementwise_affine=Only(False),
    double_self_attention=Only(False),
    only_cross_attention=Only(False),
    attention_type=Only("default"),
    num_vector_embeds=Only(None),
)
UNUSED = "dropout norm_num_groups upcast_attention use_linear_projection".split()
QUERY_KEY_VALUE = dict(query="to_q", key="to_k", value="to_v", projection="to_out.0")


def former_class(norm_type: str) -> dict[str, str]:
    """Return the entries that identify a class in configurations of `Transformer2DModel`."""
    return dict(_class_name="Transformer2DModel", norm_type=norm_type)


def build(config: Config) -> dict[str, Any]:
    """Return the fields of both classes that correspond to no single entry."""
    return dict(
        width=config["num_attention_heads"] * config["attention_head_dim"],
        base_size=config["sample_size"] // config["patch_size"],
        out_channels=config["out_channels"] or config["in_channels"],
    )


def entries_of(module: nn.Module, variables: PyTree) -> dict[str, Any]:
    """Return the entries of both classes that correspond to no single field.

    Raises:
        ValueError: the module has a part that the classes cannot express.
    """
    expect(vars(module), "mlp_ratio", 4.0)
    expect(vars(module), "time_scale", 1000.0)
    if module.base_size is None:
        raise ValueError(
            "diffusers scales positions to a base size, and this module has none; if all images "
            "have one size, save module.clone(base_size=size // patch_size)"
        )
    params, patch = variables["params"], module.patch_size**2
    return dict(
        attention_head_dim=module.width // module.num_heads,
        in_channels=params["patch_embedding"]["kernel"].shape[0] // patch,
        out_channels=params["head"]["bias"].shape[0] // patch,
        sample_size=module.base_size * module.patch_size,
    )
