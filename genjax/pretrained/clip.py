"""CLIP, and its text and image encoder each alone, as transformers writes them."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.clip import CLIP, CLIPText, CLIPVision
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import (
    from_torch,
    load_variables,
    open_tensors,
    save_variables,
    to_torch,
)
from genjax.pretrained.transformers_configuration import complete, read_architecture

# What a configuration means that does not name it (transformers' signatures).
_SHARED_DEFAULTS = dict(
    num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512
)
_TEXT_DEFAULTS = _SHARED_DEFAULTS | dict(
    vocab_size=49_408,
    hidden_size=512,
    intermediate_size=2048,
    num_attention_heads=8,
    max_position_embeddings=77,
    eos_token_id=49_407,
)
_VISION_DEFAULTS = _SHARED_DEFAULTS | dict(
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=32,
)
_DEFAULTS = dict(
    text_config={},
    vision_config={},
    text_config_dict=None,
    vision_config_dict=None,
    projection_dim=512,
    logit_scale_init_value=None,
)
_ARCHITECTURES = (
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPModel",
)
# Theirs for ours.
_WORDS = {
    "blocks": "encoder.layers.{}",
    "norm_attention": "layer_norm1",
    "norm_mlp": "layer_norm2",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "projection": "self_attn.out_proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
    "token_embedding": "embeddings.token_embedding",
    "class_embedding": "embeddings.class_embedding",
    "patch_embedding": "embeddings.patch_embedding",
    "position_embedding": "embeddings.position_embedding.weight",
    "final_norm": "final_layer_norm",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
    "embedding": "weight",
    "kernel": "weight",
    "scale": "weight",
}


def _fields(config: dict[str, Any], shared_features: int | None) -> dict[str, Any]:
    expect(config, "hidden_act", "quick_gelu", "gelu")
    return dict(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_features=config["intermediate_size"],
        shared_features=shared_features,
        quick_gelu=config["hidden_act"] == "quick_gelu",
        epsilon=config["layer_norm_eps"],
    )


def _text(config: dict[str, Any], project: bool, shared_features: int | None = None) -> CLIPText:
    config = complete(config, _TEXT_DEFAULTS)
    if not isinstance(config["eos_token_id"], int):
        raise ValueError(f"eos_token_id={config['eos_token_id']!r} is not supported; only one number")
    return CLIPText(
        **_fields(config, (shared_features or config["projection_dim"]) if project else None),
        vocabulary_size=config["vocab_size"],
        max_length=config["max_position_embeddings"],
        # The number of another token, written by mistake into the first configurations, means the highest.
        end_token=None if config["eos_token_id"] == 2 else config["eos_token_id"],
    )


def _vision(config: dict[str, Any], project: bool, shared_features: int | None = None) -> CLIPVision:
    config = complete(config, _VISION_DEFAULTS)
    expect(config, "num_channels", 3)
    return CLIPVision(
        **_fields(config, (shared_features or config["projection_dim"]) if project else None),
        patch_size=config["patch_size"],
        image_size=config["image_size"],
    )


def _module(folder: str | os.PathLike) -> CLIP | CLIPText | CLIPVision:
    architecture, config = read_architecture(folder, _ARCHITECTURES)
    if architecture.startswith("CLIPText"):
        return _text(config, architecture.endswith("WithProjection"))
    if architecture.startswith("CLIPVision"):
        return _vision(config, architecture.endswith("WithProjection"))
    config = complete(config, _DEFAULTS)
    # In old files the second of these, where there is one, counts, and what it lacks is the default.
    text, vision = (
        config[f"{part}_config_dict"] or config[f"{part}_config"] or {} for part in ("text", "vision")
    )
    shared_features = config["projection_dim"]
    return CLIP(_text(text, True, shared_features), _vision(vision, True, shared_features))


def _rename(tower: str | None, prefixed: bool, variable: str) -> str:
    """
    Args:
        tower: "text" or "vision"; None of a whole CLIP, whose variables name it.
        prefixed: whether names of a tower's tensors begin with its own.
    """
    words = variable.split("/")[1:]  # less the collection
    if words == ["logit_scale"]:
        return "logit_scale"
    if tower is None:
        tower, *words = words
    if words == ["projection", "kernel"]:
        return dict(text="text_projection.weight", vision="visual_projection.weight")[tower]
    prefix = f"{tower}_model." if prefixed else ""
    return prefix + ".".join(_WORDS.get(word, word) for word in words)


def _convert(variable: str, tensor: np.ndarray) -> np.ndarray:
    if variable.endswith("patch_embedding/kernel"):  # to them a convolution, `[out, in, height, width]`
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return from_torch(variable, tensor)


def _invert(variable: str, array: np.ndarray) -> np.ndarray:
    if variable.endswith("patch_embedding/kernel"):
        side = math.isqrt(array.shape[0] // 3)
        return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return to_torch(variable, array)


def _ignore(name: str, tensor: np.ndarray) -> bool:
    """Old files have the numbers of the positions among the weights."""
    return name.endswith("embeddings.position_ids") and np.array_equal(tensor.flat, np.arange(tensor.size))


def _tower(module: CLIP | CLIPText | CLIPVision) -> str | None:
    return {CLIPText: "text", CLIPVision: "vision", CLIP: None}[type(module)]


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[CLIP | CLIPText | CLIPVision, Any]:
    """The module and variables of a folder with a `CLIPModel`, or a `CLIPTextModel` or `CLIPVisionModel`,
    each with or without projection.

    Args:
        abstract: changes the pytree of `jax.ShapeDtypeStruct` before it is read: types, shardings.

    Raises:
        ValueError: another architecture, unknown entries of the configuration or unsupported values of them,
            or one that lists all missing, extra and misshapen tensors.
    """
    module, inputs = _module(folder), []
    tower = _tower(module)
    if tower != "text":
        size = (module if tower else module.vision).image_size
        inputs.append(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    if tower != "vision":
        inputs.append(jax.ShapeDtypeStruct((1, 1), jnp.int32))
    expected = abstract(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    # As of version 5 transformers writes a tower without projection without its name.
    prefixed = any(name.startswith(("text_model.", "vision_model.")) for name in open_tensors(folder))
    rename = functools.partial(_rename, tower, prefixed)
    return module, load_variables(folder, expected, rename, _convert, _ignore)


def save(folder: str | os.PathLike, module: CLIP | CLIPText | CLIPVision, variables: Any) -> None:
    """Writes a folder that `load` and transformers read."""
    tower = _tower(module)
    if tower is None:
        config = dict(
            architectures=["CLIPModel"],
            model_type="clip",
            projection_dim=module.text.shared_features,
            text_config=_config("text", module.text),
            vision_config=_config("vision", module.vision),
        )
    else:
        kind = "Model" if module.shared_features is None else "ModelWithProjection"
        config = dict(architectures=[f"CLIP{tower.title()}{kind}"], **_config(tower, module))
    config["dtype"] = str(jax.tree.leaves(variables)[0].dtype)
    save_variables(folder, config, variables, functools.partial(_rename, tower, True), _invert, name="model")


def _config(tower: str, module: CLIPText | CLIPVision) -> dict[str, Any]:
    config = dict(
        model_type=f"clip_{tower}_model",
        hidden_size=module.width,
        num_hidden_layers=module.depth,
        num_attention_heads=module.num_heads,
        intermediate_size=module.mlp_features or 4 * module.width,
        hidden_act="quick_gelu" if module.quick_gelu else "gelu",
        layer_norm_eps=module.epsilon,
        projection_dim=module.shared_features or module.width,
    )
    if tower == "vision":
        return config | dict(num_channels=3, image_size=module.image_size, patch_size=module.patch_size)
    return config | dict(
        vocab_size=module.vocabulary_size,
        max_position_embeddings=module.max_length,
        eos_token_id=2 if module.end_token is None else module.end_token,
    )
