"""CLIP, and its text encoder and image encoder alone, as transformers publishes them."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.encoders.clip import (
    CLIP,
    COLOUR_DEVIATION,
    COLOUR_MEAN,
    CLIPText,
    CLIPVision,
)
from genjax.pretrained.bert import numbers_of_positions, one_token
from genjax.pretrained.configuration import Field, Natural, Only, Value, expect
from genjax.pretrained.layouts import to_torch
from genjax.pretrained.published import TRANSFORMERS, Config, Published, example

_WORDS = (
    dict(blocks="encoder.layers.{}", norm_attention="layer_norm1", norm_mlp="layer_norm2")
    | dict(query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj")
    | dict(projection="self_attn.out_proj", mlp_in="mlp.fc1", mlp_out="mlp.fc2")
    | {f"{part}_embedding": f"embeddings.{part}_embedding" for part in ("token", "class", "patch")}
    | dict(position_embedding="embeddings.position_embedding.weight", pre_norm="pre_layrnorm")
    | dict(post_norm="post_layernorm", final_norm="final_layer_norm")
    | dict(embedding="weight", kernel="weight", scale="weight")
)
_TOWERS = {CLIPText: "text", CLIPVision: "vision"}


def _names(module: Any, tensors: Collection[str]) -> Callable[[str], str]:
    # Since version 5 transformers omits the tower's name for a tower without projection.
    towers = ("text_model.", "vision_model.")
    prefixed = not tensors or any(name.startswith(towers) for name in tensors)

    def name(variable: str) -> str:
        words = variable.split("/")[1:]  # without the collection
        if words == ["logit_scale"]:
            return "logit_scale"
        tower = _TOWERS.get(type(module)) or words.pop(0)  # a whole CLIP's variables name it
        if words == ["projection", "kernel"]:
            return f"{'visual' if tower == 'vision' else tower}_projection.weight"
        prefix = f"{tower}_model." if prefixed else ""
        return prefix + ".".join(_WORDS.get(word, word) for word in words)

    return name


def _invert(module: Any, variable: str, array: np.ndarray) -> np.ndarray:
    vision = getattr(module, "vision", module)
    return to_torch(variable, array, getattr(vision, "patch_size", None))


def _config(module: CLIPText | CLIPVision, variables: PyTree) -> dict[str, Any]:
    config = dict(
        model_type=f"clip_{_TOWERS[type(module)]}_model",
        intermediate_size=module.mlp_features or 4 * module.width,
        projection_dim=module.shared_features or module.width,
    )
    if isinstance(module, CLIPVision):
        return config
    return config | dict(eos_token_id=2 if module.end_token is None else module.end_token)


def _end(config: Config) -> dict[str, Any]:
    # The earliest configurations have another token's number by mistake: 2 means the highest token.
    token = config["eos_token_id"]
    return dict(end_token=None if token == 2 else token)


def _tower(module: type, sizes: tuple[int, int, int], projects: bool, **options: Any) -> Published:
    """Return the record of a tower.

    Args:
        sizes: the default width, features within the feed-forward layers, and number of heads.
    """
    width, mlp_features, num_heads = sizes
    shared = dict(
        hidden_size=Field("width", width),
        intermediate_size=Field("mlp_features", mlp_features),
        num_attention_heads=Field("num_heads", num_heads),
        num_hidden_layers=Field("depth", 12),
        layer_norm_eps=Field("epsilon", 1e-5),
        hidden_act=Field("quick_gelu", "quick_gelu", {"quick_gelu": True, "gelu": False}),
        projection_dim=Field("shared_features", 512) if projects else 512,
    )
    return Published(
        TRANSFORMERS,
        f"{module.__name__}Model{'WithProjection' * projects}",
        module,
        writes=lambda module: (module.shared_features is not None) == projects,
        entries=shared | options.pop("entries"),
        config=_config,
        names=_names,
        invert=_invert,
        ignore=numbers_of_positions,
        **options,
    )


def _text(projects: bool) -> Published:
    small = dict(hidden_size=12, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2)
    small |= dict(vocab_size=23, max_position_embeddings=11, hidden_act="gelu")
    return _tower(
        CLIPText,
        (512, 2048, 8),
        projects,
        entries=dict(
            vocab_size=Field("vocabulary_size", 49_408),
            max_position_embeddings=Field("max_length", 77),
            eos_token_id=Value(49_407, Natural),
        ),
        build=_end,
        inputs=one_token,
        examples=(small | dict(eos_token_id=2), small | dict(eos_token_id=22)),
    )


def _vision(projects: bool) -> Published:
    small = dict(hidden_size=15, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)
    return _tower(
        CLIPVision,
        (768, 3072, 12),
        projects,
        entries=dict(
            image_size=Field("image_size", 224),
            patch_size=Field("patch_size", 32),
            num_channels=Only(3),
        ),
        inputs=lambda module, config: (example(module.image_size, module.image_size, 3),),
        examples=(small | dict(image_size=12, patch_size=4),),
    )


_TEXT, _VISION = _text(projects=True), _vision(projects=True)


def _build_towers(config: Config) -> dict[str, Any]:
    """Return the towers of a whole CLIP, with the whole CLIP's number of projected features."""
    shared, towers = dict(projection_dim=config["projection_dim"]), {}
    for name, record in dict(text=_TEXT, vision=_VISION).items():
        # Old files have the first of these. If present, it counts, completed by defaults only.
        tower = config[f"{name}_config_dict"] or config[f"{name}_config"] or {}
        try:
            towers[name] = record.make(record.complete(tower | shared))
        except ValueError as error:
            raise ValueError(f"{name}_config: {error}") from error
    return towers


_CLIP = Published(
    TRANSFORMERS,
    "CLIPModel",
    CLIP,
    entries=dict(
        text_config=Value({}, dict | None),
        vision_config=Value({}, dict | None),
        text_config_dict=Value(None, dict | None),
        vision_config_dict=Value(None, dict | None),
        projection_dim=512,
    ),
    unused=("logit_scale_init_value",),
    build=_build_towers,
    config=lambda module, variables: dict(
        model_type="clip",
        projection_dim=module.text.shared_features,
        text_config=_TEXT.write(module.text, variables),
        vision_config=_VISION.write(module.vision, variables),
    ),
    inputs=lambda module, config: (
        *_VISION.inputs(module.vision, config),
        *_TEXT.inputs(module.text, config),
    ),
    names=_names,
    invert=_invert,
    ignore=numbers_of_positions,
    examples=(
        dict(
            text_config=_TEXT.examples[0],
            vision_config=_VISION.examples[0],
            projection_dim=14,
        ),
    ),
)


def check_preparation(entries: Config, size: int) -> None:
    """Check that `preprocessor_config.json` says what `resize_and_crop` and `CLIPVision` do.

    Args:
        size: the side of the encoder's pictures, in pixels.

    Raises:
        ValueError: an entry has another value; the error names it.
    """
    cubic = 3  # Pillow's number
    supported = dict(
        size=(dict(shortest_edge=size), size),
        crop_size=(dict(height=size, width=size), size),
        image_mean=([*COLOUR_MEAN],),
        image_std=([*COLOUR_DEVIATION],),
        resample=(cubic,),
        rescale_factor=(1 / 255,),
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), (True,)),
    )
    for name, values in supported.items():
        expect({name: values[0], **entries}, name, *values)


PUBLISHED = (_text(projects=False), _TEXT, _vision(projects=False), _VISION, _CLIP)
