"""DiT as diffusers publishes it.

The outputs equal those of diffusers at `timestep` = 1000·t. The authors' own DiT has other
frequencies of time and another epsilon (`DiT.max_period`, `DiT.mlp_epsilon`).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from genjax.models.transformers.dit import DiT
from genjax.pretrained import transformer_2d
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import Names, from_torch, layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published, example

# diffusers spaces the 128 frequencies of time by 1/127 of the range of their logarithms instead of
# 1/128, which amounts to this period. A network trained for diffusers needs the same period.
MAX_PERIOD = 10_000.0 ** (128 / 127)
_BLOCK = {
    "modulation/dense": "norm1.linear",
    "projection": "attn1.to_out.0",
    "mlp_in": "ff.net.0.proj",
    "mlp_out": "ff.net.2",
}
_LAYERS = prefixed("blocks/", "transformer_blocks.{}.", _BLOCK) | {
    "blocks/query_key_value": tuple(f"transformer_blocks.{{}}.attn1.to_{part}" for part in "qkv"),
    "patch_embedding": "pos_embed.proj",
    "modulation/dense": "proj_out_1",
    "head": "proj_out_2",
}
_EMBEDDINGS = {  # in every block of the file; in our blocks only if they differ
    "time_in": "timestep_embedder.linear_1",
    "time_out": "timestep_embedder.linear_2",
    "label_embedding": "class_embedder.embedding_table",
}


def _names(module: DiT, tensors: Collection[str]) -> Callable[[str], Names]:
    if module.embeddings_per_block:
        return layer_names(
            _LAYERS | prefixed("embeddings/", "transformer_blocks.{}.norm1.emb.", _EMBEDDINGS)
        )
    blocks = [f"transformer_blocks.{i}.norm1.emb." for i in range(module.depth)]
    copies = {ours: tuple(b + name for b in blocks) for ours, name in _EMBEDDINGS.items()}
    return layer_names(_LAYERS | copies)


def _choose_tying(module: DiT, tensors: Mapping[str, np.ndarray]) -> DiT:
    """Return the module, with embeddings in each block if the file's copies differ."""
    for name in _EMBEDDINGS.values():
        for part in ("weight", "bias"):
            names = [f"transformer_blocks.{i}.norm1.emb.{name}.{part}" for i in range(module.depth)]
            first, *copies = [tensors[name] for name in names if name in tensors] or [None]
            if not all(np.array_equal(first, copy) for copy in copies):
                return module.clone(embeddings_per_block=True)
    return module


def _convert(module: DiT, variable: str, *tensors: np.ndarray) -> np.ndarray:
    """Join queries, keys and values in the order that `genjax.nn.heads_of` expects."""
    if "query_key_value" not in variable:
        return from_torch(variable, tensors[0])  # `_choose_tying` has compared the copies
    outputs, *inputs = tensors[0].shape
    heads = [tensor.reshape(module.num_heads, -1, *inputs) for tensor in tensors]
    return from_torch(variable, np.stack(heads, axis=1).reshape(3 * outputs, *inputs))


def _invert(module: DiT, variable: str, array: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
    if variable.split("/")[1] in _EMBEDDINGS:
        return (to_torch(variable, array),) * module.depth
    if "query_key_value" not in variable:
        return to_torch(variable, array, module.patch_size)
    heads = array.reshape(*array.shape[:-1], module.num_heads, 3, -1)
    parts = [heads[..., i, :].reshape(*array.shape[:-1], -1) for i in range(3)]
    return tuple(to_torch(variable, part) for part in parts)


def _config(module: DiT, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "max_period", MAX_PERIOD)
    return dict(norm_type="ada_norm_zero") | transformer_2d.entries_of(module, variables)


def _inputs(module: DiT, config: Config) -> tuple:
    side = config["sample_size"]
    return example(side, side, config["in_channels"]), example(), example(dtype=jnp.int32)


DIT = Published(
    DIFFUSERS,
    "DiTTransformer2DModel",
    DiT,
    alias=transformer_2d.former_class("ada_norm_zero"),
    entries=transformer_2d.ENTRIES
    | dict(
        norm_type=Only("ada_norm_zero"),
        out_channels=Value(None, int | None),
        sample_size=32,
        num_embeds_ada_norm=Field("num_classes", 1000),
        norm_eps=Field("mlp_epsilon", 1e-5),
    ),
    # The old class had the other entries too.
    unused=transformer_2d.UNUSED
    + "cross_attention_dim caption_channels interpolation_scale use_additional_conditions".split(),
    build=lambda config: transformer_2d.build(config) | dict(max_period=MAX_PERIOD),
    config=_config,
    inputs=_inputs,
    names=_names,
    adapt=_choose_tying,
    convert=_convert,
    invert=_invert,
    examples=(
        dict(num_layers=2, num_attention_heads=3, attention_head_dim=4, num_embeds_ada_norm=5)
        | dict(in_channels=3, out_channels=6, sample_size=12, patch_size=3, norm_eps=0.05),
    ),
)
PUBLISHED = (DIT,)
