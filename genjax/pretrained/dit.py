"""DiT in the folders that diffusers writes (`DiTTransformer2DModel`)."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.transformers.dit import DiT
from genjax.pretrained.safetensors_io import load_variables, open_tensors, save_variables
from genjax.pretrained.transformer_2d import (
    LEAVES,
    check,
    convert,
    invert,
    read_transformer_config,
    transformer_config,
)

# diffusers spaces the 128 frequencies of time by 1/127 of the range of their logarithms instead of 1/128: the
# same as this period.
MAX_PERIOD = 10_000.0 ** (128 / 127)

_CLASS, _NORM = "DiTTransformer2DModel", "ada_norm_zero"
# The last four are of `Transformer2DModel`.
_DEFAULTS = dict(
    out_channels=None,
    sample_size=32,
    norm_eps=1e-5,
    cross_attention_dim=None,
    caption_channels=None,
    interpolation_scale=None,
    use_additional_conditions=None,
)
_BLOCK = "transformer_blocks.{}."
_LAYERS = {
    "patch_embedding": "pos_embed.proj",
    "time_in": _BLOCK + "norm1.emb.timestep_embedder.linear_1",
    "time_out": _BLOCK + "norm1.emb.timestep_embedder.linear_2",
    "label_embedding": _BLOCK + "norm1.emb.class_embedder.embedding_table",
    "blocks/modulation/dense": _BLOCK + "norm1.linear",
    "blocks/query": _BLOCK + "attn1.to_q",
    "blocks/key": _BLOCK + "attn1.to_k",
    "blocks/value": _BLOCK + "attn1.to_v",
    "blocks/projection": _BLOCK + "attn1.to_out.0",
    "blocks/mlp_in": _BLOCK + "ff.net.0.proj",
    "blocks/mlp_out": _BLOCK + "ff.net.2",
    "modulation/dense": "proj_out_1",
    "head": "proj_out_2",
}
_EMBEDDINGS = ("time_in", "time_out", "label_embedding")  # in every block of theirs, once in ours
_PARTS = ("query", "key", "value")


def _rename(variable: str) -> str:
    layers, leaf = variable.removeprefix("params/").rsplit("/", 1)
    return f"{_LAYERS[layers]}.{LEAVES[leaf]}"


def _rename_of_first(variable: str) -> str:
    name = _rename(variable)
    return name.format(0) if variable.split("/")[1] in _EMBEDDINGS else name


def _apart(variables: Any, part: Callable[[Any, int], Any]) -> Any:
    """`variables` with three layers for the one of queries, keys and values; `part(leaf, i)` is a third."""
    blocks = dict(variables["params"]["blocks"])
    qkv = blocks.pop("query_key_value")
    for i, name in enumerate(_PARTS):
        blocks[name] = {leaf: part(value, i) for leaf, value in qkv.items()}
    return {"params": {**variables["params"], "blocks": blocks}}


def _third(struct: jax.ShapeDtypeStruct, part: int) -> jax.ShapeDtypeStruct:
    shape = (*struct.shape[:-1], struct.shape[-1] // 3)
    return jax.ShapeDtypeStruct(shape, struct.dtype, sharding=struct.sharding)


def _together(variables: Any, expected: Any, num_heads: int) -> Any:
    """The inverse of `_apart`, in the order of features that `genjax.nn.heads_of` takes."""
    blocks = dict(variables["params"]["blocks"])
    parts = [blocks.pop(name) for name in _PARTS]

    def join(leaf, *thirds):
        numpy = np if leaf.sharding is None else jnp
        heads = [third.reshape(*third.shape[:-1], num_heads, -1) for third in thirds]
        joined = numpy.stack(heads, axis=-2).reshape(leaf.shape)
        return joined if leaf.sharding is None else jax.device_put(joined, leaf.sharding)

    blocks["query_key_value"] = jax.tree.map(join, expected["params"]["blocks"]["query_key_value"], *parts)
    return {"params": {**variables["params"], "blocks": blocks}}


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[DiT, Any]:
    """The module and its variables from a folder of `config.json` and safetensors.

    Its outputs are diffusers' of `timestep` = 1000·t, which are those of DiT as published but for the
    frequencies of time and an epsilon (`DiT.max_period`, `DiT.mlp_epsilon`).

    Args:
        abstract: applied to the pytree of `jax.ShapeDtypeStruct` before reading: to change types or add
            shardings.

    Raises:
        ValueError: an entry of the configuration that is not known or not supported, by name; embeddings that
            are not the same in all blocks; or one that lists all missing, extra and misshapen tensors.
    """
    config = read_transformer_config(folder, _CLASS, _NORM, _DEFAULTS)
    side = config["sample_size"]
    module = DiT(
        patch_size=config["patch_size"],
        width=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        num_classes=config["num_embeds_ada_norm"],
        out_channels=config["out_channels"] or config["in_channels"],
        base_size=side // config["patch_size"],
        max_period=MAX_PERIOD,
        mlp_epsilon=config["norm_eps"],
    )
    images = jax.ShapeDtypeStruct((1, side, side, config["in_channels"]), jnp.float32)
    t, labels = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    expected = abstract(jax.eval_shape(module.init, jax.random.key(0), images, t, labels))
    tensors = open_tensors(folder)

    def is_copy(name: str, tensor: np.ndarray) -> bool:
        if not (match := re.fullmatch(r"transformer_blocks\.\d+\.(norm1\.emb\..*)", name)):
            return False
        first = f"transformer_blocks.0.{match[1]}"
        if not np.array_equal(tensor, tensors.get(first, tensor)):
            raise ValueError(f"{name} is another than {first}: this module has one embedding for all blocks")
        return True

    apart = load_variables(folder, _apart(expected, _third), _rename_of_first, convert, is_copy)
    return module, _together(apart, expected, module.num_heads)


def save(folder: str | os.PathLike, module: DiT, variables: Any) -> None:
    """Writes what diffusers' `DiTTransformer2DModel.from_pretrained` and `load` read.

    A network that is trained to be saved so needs `max_period=MAX_PERIOD`.

    Raises:
        ValueError: the module has what diffusers' cannot have.
    """
    check(module, "max_period", MAX_PERIOD)
    config = transformer_config(
        _CLASS,
        _NORM,
        module,
        variables,
        norm_eps=module.mlp_epsilon,
        num_embeds_ada_norm=module.num_classes,
    )
    heads = lambda leaf: leaf.reshape(*leaf.shape[:-1], module.num_heads, 3, -1)
    variables = _apart(variables, lambda leaf, i: heads(leaf)[..., i, :].reshape(*leaf.shape[:-1], -1))
    copies = lambda leaf: np.broadcast_to(leaf, (module.depth, *leaf.shape))
    embeddings = {name: jax.tree.map(copies, variables["params"][name]) for name in _EMBEDDINGS}
    variables = {"params": variables["params"] | embeddings}
    save_variables(folder, config, variables, _rename, functools.partial(invert, module.patch_size))
