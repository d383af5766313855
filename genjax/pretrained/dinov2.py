"""DINOv2 as transformers writes it (`Dinov2Model`, `Dinov2WithRegistersModel`)."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.dinov2 import Dinov2
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import from_torch, load_variables, save_variables, to_torch
from genjax.pretrained.transformers_configuration import complete, read_architecture

PLAIN, WITH_REGISTERS = "Dinov2Model", "Dinov2WithRegistersModel"
# What a configuration means that does not name it (transformers' signatures).
_SHARED_DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=224,
    num_channels=3,
    qkv_bias=True,
    use_swiglu_ffn=False,
    use_mask_token=True,
)
_DEFAULTS = {
    PLAIN: _SHARED_DEFAULTS | dict(patch_size=14, num_register_tokens=0),
    WITH_REGISTERS: _SHARED_DEFAULTS
    # The last two, which published folders have, are no longer known to transformers.
    | dict(patch_size=16, num_register_tokens=4, interpolate_antialias=True, interpolate_offset=0.0),
}
# Entries that are not the network's.
_OTHERS = dict.fromkeys(
    "hidden_dropout_prob attention_probs_dropout_prob drop_path_rate layerscale_value "
    "out_features out_indices stage_names apply_layernorm reshape_hidden_states".split()
)
# Theirs for our layers and parameters.
_NAMES = {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "norm": "layernorm",
    "blocks/attention_norm": "encoder.layer.{}.norm1",
    "blocks/attention/query": "encoder.layer.{}.attention.attention.query",
    "blocks/attention/key": "encoder.layer.{}.attention.attention.key",
    "blocks/attention/value": "encoder.layer.{}.attention.attention.value",
    "blocks/attention/projection": "encoder.layer.{}.attention.output.dense",
    "blocks/attention_scale": "encoder.layer.{}.layer_scale1.lambda1",
    "blocks/mlp_norm": "encoder.layer.{}.norm2",
    "blocks/mlp_scale": "encoder.layer.{}.layer_scale2.lambda1",
}
_MLP = {"blocks/mlp_in": "encoder.layer.{}.mlp.fc1", "blocks/mlp_out": "encoder.layer.{}.mlp.fc2"}
_GATED_MLP = {
    "blocks/mlp_in": "encoder.layer.{}.mlp.weights_in",
    "blocks/mlp_out": "encoder.layer.{}.mlp.weights_out",
}

# How many axes of size 1 theirs have before ours.
_LEADING_AXES = {"class_token": 2, "mask_token": 1, "registers": 1, "positions": 1}


def _renaming(module: Dinov2) -> Callable[[str], str]:
    names = _NAMES | (_GATED_MLP if module.gated else _MLP)

    def rename(variable: str) -> str:
        path = variable.removeprefix("params/")
        if path in names:
            return names[path]
        layer, name = path.rsplit("/", 1)
        return f"{names[layer]}.{'bias' if name == 'bias' else 'weight'}"

    return rename


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Their patches are a convolution's `[out, channel, row, column]`; their tokens have axes of size 1."""
    if variable.endswith("patch_embedding/kernel"):
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    if variable.removeprefix("params/") in _LEADING_AXES:
        return tensor.squeeze(tuple(range(_LEADING_AXES[variable.removeprefix("params/")])))
    return from_torch(variable, tensor)


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[Dinov2, Any]:
    """The module and its variables from a folder that transformers' `save_pretrained` wrote.

    Of `Dinov2Model` or `Dinov2WithRegistersModel`.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; or one
            that lists all missing, extra and misshapen tensors.
    """
    architecture, config = read_architecture(folder, list(_DEFAULTS))
    config = complete(config, _DEFAULTS[architecture] | _OTHERS)
    for name in ("hidden_act", "qkv_bias", "use_mask_token", "interpolate_antialias", "interpolate_offset"):
        if name in config:
            expect(config, name, _DEFAULTS[architecture][name])
    module = Dinov2(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["mlp_ratio"],
        gated=config["use_swiglu_ffn"],
        num_registers=config["num_register_tokens"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        epsilon=config["layer_norm_eps"],
    )
    side = module.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, config["num_channels"]), jnp.float32)
    expected = abstract(jax.eval_shape(module.init, jax.random.key(0), image))
    return module, load_variables(folder, expected, _renaming(module), _convert)


def save(folder: str | os.PathLike, module: Dinov2, variables: Any) -> None:
    """Writes what `load` and transformers read."""
    kernel = variables["params"]["patch_embedding"]["kernel"]
    shape = (module.patch_size, module.patch_size, -1, module.width)
    config = _SHARED_DEFAULTS | dict(
        hidden_size=module.width,
        num_hidden_layers=module.depth,
        num_attention_heads=module.num_heads,
        mlp_ratio=module.mlp_ratio,
        layer_norm_eps=module.epsilon,
        image_size=module.image_size,
        patch_size=module.patch_size,
        num_channels=kernel.shape[0] // module.patch_size**2,
        use_swiglu_ffn=module.gated,
    )
    if module.num_registers:
        config |= dict(architectures=[WITH_REGISTERS], model_type="dinov2_with_registers")
        config |= dict(num_register_tokens=module.num_registers)
    else:
        config |= dict(architectures=[PLAIN], model_type="dinov2")

    def invert(variable: str, array: np.ndarray) -> np.ndarray:
        if variable.endswith("patch_embedding/kernel"):
            return array.reshape(shape).transpose(3, 2, 0, 1)
        axes = _LEADING_AXES.get(variable.removeprefix("params/"), 0)
        return to_torch(variable, array)[(None,) * axes]

    save_variables(folder, config, variables, _renaming(module), invert, name="model")
