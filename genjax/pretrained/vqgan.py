"""VQGANs as diffusers publishes them, and the tokenizers of LlamaGen as its authors do."""

import functools
import os
from typing import Any

import jax
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
    level_inputs,
    level_layers,
    names,
    naming,
    one_for_all,
)
from genjax.pretrained.configuration import Field, Only, expect
from genjax.pretrained.published import DIFFUSERS, Config, Published
from genjax.pretrained.safetensors_io import load_variables

_LLAMAGEN_WORDS = {
    "kernel": "weight",
    "scale": "weight",
    "codes": "weight",
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "projection": "proj_out",
}


def _build(config: Config) -> dict[str, Any]:
    features = config["vq_embed_dim"] or config["latent_channels"]
    return dict(
        quantizer=VectorQuantizer(config["num_vq_embeddings"], features),
        attention_levels=attention_levels(config),
        latent_deviation=(1 / config["scaling_factor"],),
    )


def _config(module: VQModel, variables: PyTree) -> dict[str, Any]:
    expect(vars(module), "latent_mean", (0.0,))
    expect(dict(quantizer=type(module.quantizer)), "quantizer", VectorQuantizer)
    return dict(
        num_vq_embeddings=module.quantizer.num_codes,
        vq_embed_dim=module.latent_channels,
        scaling_factor=1 / one_for_all(module, "latent_deviation"),
        **level_config(module, variables),
    )


def _pack(module: VQModel, variables: PyTree) -> PyTree:
    """Keep the codebook by its effect, and leave out what trains it, such as moving averages.

    A normalized codebook is written with codes of unit length. The nearest of them to latents of
    any length is the same.
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
        vq_embed_dim=None,
        norm_type=Only("group"),
    ),
    unused=(*LEVEL_UNUSED, "lookup_from_codebook"),
    build=_build,
    config=_config,
    inputs=level_inputs,
    names=names,
    convert=convert,
    pack=_pack,
    examples=(LEVEL_EXAMPLE | dict(latent_channels=5, num_vq_embeddings=7, vq_embed_dim=2),),
)
PUBLISHED = (VQ_MODEL,)


def load_llamagen(path: str | os.PathLike, module: VQModel) -> Any:
    """Read the variables of `module` from the state dict of LlamaGen's `VQModel`, in safetensors.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; all are listed.
    """
    middle = ("mid.0", "mid.1", "mid.2")
    layers = level_layers(module, "conv_blocks.{level}", "res", "attn", "{direction}sample.conv", middle)
    inputs = level_inputs(module, dict(in_channels=3))
    return load_variables(
        path,
        jax.eval_shape(module.init, jax.random.key(0), *inputs),
        naming(layers, _LLAMAGEN_WORDS),
        functools.partial(convert, module),
        lambda name, tensor: name == "quantize.codebook_used",  # the last indices of their training
    )
