"""MAR from its authors' state dicts (Li et al. 2024), saved as safetensors.

The authors' times are 0 … 999, and the module's are these over 1000. `authors_autoencoders` reads
the autoencoder.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.autoregressive.mar import MAR
from genjax.pretrained.layouts import from_torch, layer_names, part_of_stack, prefixed
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_BLOCK = {
    **dict(query="attn.qkv", key="attn.qkv", value="attn.qkv", projection="attn.proj"),
    **dict(attention_norm="norm1", mlp_norm="norm2", mlp_in="mlp.fc1", mlp_out="mlp.fc2"),
}
_DENOISER = {
    "time_embedding/linear_in": "time_embed.mlp.0",
    "time_embedding/linear_out": "time_embed.mlp.2",
    "state_embedding": "cond_embed",
    "token_embedding": "input_proj",
    "blocks/norm": "res_blocks.{}.in_ln",
    "blocks/mlp_in": "res_blocks.{}.mlp.0",
    "blocks/mlp_out": "res_blocks.{}.mlp.2",
    "blocks/modulation/dense": "res_blocks.{}.adaLN_modulation.1",
    "modulation/dense": "final_layer.adaLN_modulation.1",
    "head": "final_layer.linear",
}
_LAYERS = {
    **prefixed("encoder/", "encoder_blocks.{}.", _BLOCK),
    **prefixed("decoder/", "decoder_blocks.{}.", _BLOCK),
    **prefixed("denoiser/", "diffloss.net.", _DENOISER),
    **dict(token_embedding="z_proj", embedding_norm="z_proj_ln"),
    **dict(encoder_norm="encoder_norm", decoder_norm="decoder_norm"),
    **dict(decoder_embedding="decoder_embed", mask_token="mask_token"),
    **{
        f"{ours}_positions": f"{other}_pos_embed_learned"
        for ours, other in dict(encoder="encoder", decoder="decoder", state="diffusion").items()
    },
    "label_embedding/embedding": ("class_emb.weight", "fake_latent"),
}


def load(
    path: str | os.PathLike,
    module: MAR,
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> Any:
    """Read the variables of `module` from a file or folder of safetensors.

    Args:
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    tokens, mask = example(module.length, module.channels), example(module.length, dtype=bool)
    inputs = tokens, mask, example(dtype=jnp.int32), tokens, example()
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return load_variables(path, abstract(expected), layer_names(_LAYERS), _convert)


def _convert(variable: str, tensor: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Join the classes with the null class; take one of the three layers that a tensor stacks."""
    layer, leaf = variable.split("/")[-2:]
    if layer == "label_embedding":
        return np.concatenate([tensor, *others])
    if leaf == "mask_token" or leaf.endswith("_positions"):
        return tensor.reshape(tensor.shape[-2:] if leaf.endswith("_positions") else -1)
    return from_torch(variable, part_of_stack(variable, tensor))
