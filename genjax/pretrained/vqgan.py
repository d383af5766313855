"""VQGANs as diffusers publishes them, and the tokenizers of the authors of LlamaGen and VAR."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.autoencoder_kl import (
    LEVEL_ENTRIES,
    LEVEL_EXAMPLE,
    LEVEL_UNUSED,
    attention_levels,
    convert,
    level_config,
    level_names,
    moments,
    names,
    smallest_image,
)
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import from_torch
from genjax.pretrained.published import DIFFUSERS, Config, Published
from genjax.pretrained.variables import load_variables

_LLAMAGEN_KINDS = {
    **dict(block="res", attention="attn"),
    **dict(downsample="downsample.conv", upsample="upsample.conv"),
}
_LLAMAGEN_WORDS = (
    dict(mid_block_0="mid.0", mid_attention="mid.1", mid_block_1="mid.2")
    | dict(query="q", key="k", value="v", projection="proj_out")
    | dict(quantizer="quantize.embedding", shortcut="nin_shortcut")
)
_VAR_KINDS = {
    **dict(block="block", attention="attn"),
    **dict(downsample="downsample.conv", upsample="upsample.conv"),
}
_QKV = ("query", "key", "value")
_VAR_WORDS = (
    dict(mid_block_0="mid.block_1", mid_attention="mid.attn_1", mid_block_1="mid.block_2")
    | dict.fromkeys(_QKV, "qkv")
    | dict(projection="proj_out", shortcut="nin_shortcut")
    | dict(quantizer="quantize", codes="embedding.weight")
)


def _build(config: Config) -> dict[str, Any]:
    features = config["vq_embed_dim"] or config["latent_channels"]
    down, up = attention_levels(config)
    if down != up:
        raise ValueError(
            f"attention at levels {down} of the encoder and {up} of the decoder is not supported"
        )
    return dict(
        quantizer=VectorQuantizer(config["num_vq_embeddings"], features),
        attention_levels=down,
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _config(module: VQModel, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "latent_mean", (0.0,))
    expect(vars(module), "quant_side", 1)
    expect(dict(quantizer=type(module.quantizer)), "quantizer", VectorQuantizer)
    return dict(
        num_vq_embeddings=module.quantizer.num_codes,
        vq_embed_dim=module.latent_channels,
        scaling_factor=1 / moments(module, "latent_deviation", 1)[0],
        **level_config(module, variables),
    )


def _pack(module: VQModel, variables: PyTree) -> PyTree:
    """Keep the codebook's codes, and leave out the state of its training, such as moving averages.

    A normalized codebook is written with codes of unit length. The nearest code to a latent of any
    length stays the same.
    """
    codes = module.apply(variables, method=lambda module: module.quantizer.codebook)
    return {"params": {**variables["params"], "quantizer": {"codes": codes}}}


VQ_MODEL = Published(
    DIFFUSERS,
    "VQModel",
    VQModel,
    entries=LEVEL_ENTRIES
    | dict(
        latent_channels=Field("encoder_channels", 3),
        num_vq_embeddings=256,
        vq_embed_dim=Value(None, int | None),
        norm_type=Only("group"),
    ),
    unused=(*LEVEL_UNUSED, "lookup_from_codebook"),
    build=_build,
    config=_config,
    inputs=smallest_image,
    names=names,
    convert=convert,
    pack=_pack,
    examples=(LEVEL_EXAMPLE | dict(latent_channels=5, num_vq_embeddings=7, vq_embed_dim=2),),
)
PUBLISHED = (VQ_MODEL,)


def load_llamagen(path: str | os.PathLike, module: VQModel) -> Any:
    """Read the variables of `module` from the state dict of LlamaGen's `VQModel`, in safetensors.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    inputs = smallest_image(module, dict(in_channels=3))
    return load_variables(
        path,
        jax.eval_shape(module.init, jax.random.key(0), *inputs),
        level_names(module, "conv_blocks.{level}", _LLAMAGEN_KINDS, _LLAMAGEN_WORDS),
        functools.partial(convert, module),
        lambda name, tensor: (
            name == "quantize.codebook_used"
        ),  # the last indices of the authors' training
    )


def load_var(path: str | os.PathLike, module: VQModel) -> Any:
    """Read the variables of `module` from the state dict of VAR's `VQVAE`, in safetensors.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    side = module.factor * module.quantizer.sides[-1]
    expected = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    usage = lambda name, tensor: name == "quantize.ema_vocab_hit_SV"  # of the codes in training
    return load_variables(path, expected, _var_names(module), _convert_var, usage)


def _var_names(module: VQModel) -> Callable[[str], str]:
    """Return the authors' names, which count levels of the decoder from the images, as ours do."""
    names = level_names(module, "{direction}.{level}", _VAR_KINDS, _VAR_WORDS)
    last = len(module.widths) - 1
    from_images = lambda match: f"decoder.up.{last - int(match[1])}."

    def name(variable: str) -> str:
        published = re.sub(r"^decoder\.up\.(\d+)\.", from_images, names(variable))
        return re.sub(r"\.convolutions_(\d+)\.", r".quant_resi.qresi_ls.\1.", published)

    return name


def _convert_var(variable: str, tensor: np.ndarray) -> np.ndarray:
    """Take one of the three layers of an attention block, which a tensor stacks."""
    layer, leaf = variable.split("/")[-2:]
    if layer in _QKV:
        tensor = np.split(tensor, 3)[_QKV.index(layer)]
    if leaf == "kernel" and layer in (*_QKV, "projection"):
        return tensor.reshape(tensor.shape[:2]).T
    return from_torch(variable, tensor)
