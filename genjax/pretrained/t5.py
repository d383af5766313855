"""Encoders of T5 and UMT5 as transformers writes them, alone or with their decoders."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.t5 import T5Encoder
from genjax.pretrained.configuration import expect
from genjax.pretrained.safetensors_io import load_variables, open_tensors, save_variables
from genjax.pretrained.transformers_configuration import complete, read_architecture

# What a configuration means that does not name it (transformers' signatures).
_SHARED_DEFAULTS = dict(
    d_model=512,
    d_kv=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    dense_act_fn=None,  # both follow from feed_forward_proj
    is_gated_act=None,
    is_decoder=False,
    # The decoder's, and the end of a text and the most positions in training: not the encoder's affair.
    num_decoder_layers=None,
    scale_decoder_outputs=None,
    eos_token_id=1,
    n_positions=512,
)
_DEFAULTS = {
    False: _SHARED_DEFAULTS
    | dict(vocab_size=32_128, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu"),
    True: _SHARED_DEFAULTS
    | dict(vocab_size=250_112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu"),
}
_KINDS = ("EncoderModel", "Model", "ForConditionalGeneration")
_ARCHITECTURES = [f"{family}{kind}" for family in ("T5", "UMT5") for kind in _KINDS]
_ATTENTION, _MLP = "encoder.block.{}.layer.0", "encoder.block.{}.layer.1"


def _names(gated: bool, embedding: str) -> dict[str, str]:
    """Theirs for ours."""
    attention = {
        f"blocks/{ours}/kernel": f"{_ATTENTION}.SelfAttention.{theirs}.weight"
        for ours, theirs in dict(query="q", key="k", value="v", projection="o").items()
    }
    mlp = dict(mlp_gate="wi_0", mlp_in="wi_1" if gated else "wi", mlp_out="wo")
    return (
        attention
        | {f"blocks/{ours}/kernel": f"{_MLP}.DenseReluDense.{theirs}.weight" for ours, theirs in mlp.items()}
        | {
            "blocks/norm_attention/scale": f"{_ATTENTION}.layer_norm.weight",
            "blocks/norm_mlp/scale": f"{_MLP}.layer_norm.weight",
            "blocks/relative_bias/table": f"{_ATTENTION}.SelfAttention.relative_attention_bias.weight",
            "relative_bias/table": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "final_norm/scale": "encoder.final_layer_norm.weight",
            "token_embedding/embedding": embedding,
        }
    )


def _rename(module: T5Encoder, embedding: str = "shared.weight") -> Callable[[str], str]:
    names = _names(module.gated, embedding)
    return lambda variable: names[variable.removeprefix("params/")]


def load(
    folder: str | os.PathLike, abstract: Callable[[Any], Any] = lambda expected: expected
) -> tuple[T5Encoder, Any]:
    """The module and variables of a folder with a `T5EncoderModel` or `UMT5EncoderModel`, or of the encoder
    of a `T5Model`, `T5ForConditionalGeneration` and their likes.

    Args:
        abstract: changes the pytree of `jax.ShapeDtypeStruct` before it is read: types, shardings.

    Raises:
        ValueError: another architecture, unknown entries of the configuration or unsupported values of them,
            or one that lists all missing, extra and misshapen tensors.
    """
    architecture, config = read_architecture(folder, _ARCHITECTURES)
    bias_per_block = architecture.startswith("UMT5")
    config = complete(config, _DEFAULTS[bias_per_block])
    expect(config, "feed_forward_proj", "relu", "gated-gelu")
    expect(config, "is_decoder", False)
    gated = config["feed_forward_proj"] == "gated-gelu"
    expect(config, "dense_act_fn", None, "gelu_new" if gated else "relu")
    module = T5Encoder(
        vocabulary_size=config["vocab_size"],
        width=config["d_model"],
        depth=config["num_layers"],
        num_heads=config["num_heads"],
        head_features=config["d_kv"],
        mlp_features=config["d_ff"],
        gated=gated,
        bias_per_block=bias_per_block,
        num_buckets=config["relative_attention_num_buckets"],
        max_distance=config["relative_attention_max_distance"],
        epsilon=config["layer_norm_epsilon"],
    )
    expected = abstract(
        jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
    )
    # The one table of embeddings has two names, of which files have either or both.
    tensors = open_tensors(folder)
    embedding, other = "shared.weight", "encoder.embed_tokens.weight"
    if embedding not in tensors:
        embedding = other

    def ignore(name: str, tensor: np.ndarray) -> bool:
        if name == other:
            return np.array_equal(tensor, tensors[embedding])
        return name.startswith(("decoder.", "lm_head.")) and not architecture.endswith("EncoderModel")

    return module, load_variables(folder, expected, _rename(module, embedding), ignore=ignore)


def save(folder: str | os.PathLike, module: T5Encoder, variables: Any) -> None:
    """Writes a folder that `load` and transformers read."""
    family = "UMT5" if module.bias_per_block else "T5"
    config = dict(
        architectures=[f"{family}EncoderModel"],
        model_type=family.lower(),
        dtype=str(jax.tree.leaves(variables)[0].dtype),
        vocab_size=module.vocabulary_size,
        d_model=module.width,
        d_kv=module.head_features,
        d_ff=module.mlp_features,
        num_layers=module.depth,
        num_heads=module.num_heads,
        feed_forward_proj="gated-gelu" if module.gated else "relu",
        relative_attention_num_buckets=module.num_buckets,
        relative_attention_max_distance=module.max_distance,
        layer_norm_epsilon=module.epsilon,
    )
    save_variables(folder, config, variables, _rename(module), name="model")
