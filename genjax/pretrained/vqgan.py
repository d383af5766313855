"""VQGANs as diffusers writes them, and the tokenizers of LlamaGen as their authors do."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from genjax.models.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.autoencoder_kl import (
    SHARED_DEFAULTS,
    layer_names,
    level_fields,
    load_folder,
    load_variables_of,
    renaming,
)
from genjax.pretrained.configuration import expect, read_config

# The last does not concern the network: it says what diffusers' `decode` is given.
_DEFAULTS = SHARED_DEFAULTS | dict(
    latent_channels=3,
    num_vq_embeddings=256,
    vq_embed_dim=None,
    norm_type="group",
    lookup_from_codebook=False,
)
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


def load(folder: str | os.PathLike, abstract: Callable = lambda expected: expected) -> tuple[VQModel, Any]:
    """The module and its variables from a folder written by `save_pretrained` of diffusers' `VQModel`.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ValueError: the configuration has an entry that is unknown or not supported, which is named; or one that
            lists all missing, extra and misshapen tensors.
    """
    config = read_config(folder, "VQModel", _DEFAULTS)
    expect(config, "norm_type", "group")
    features = config["vq_embed_dim"] or config["latent_channels"]
    module = VQModel(
        quantizer=VectorQuantizer(config["num_vq_embeddings"], features),
        encoder_channels=config["latent_channels"],
        latent_deviation=(1 / config["scaling_factor"],),
        **level_fields(config),
    )
    return module, load_folder(folder, module, config["in_channels"], abstract)


def load_llamagen(path: str | os.PathLike, module: VQModel) -> Any:
    """The variables of `module` from the state dict of LlamaGen's `VQModel`, saved as safetensors.

    Raises:
        ValueError: one that lists all missing, extra and misshapen tensors.
    """
    layers = layer_names(
        module, "conv_blocks.{level}", "res", "attn", "{direction}sample.conv", ("mid.0", "mid.1", "mid.2")
    )
    return load_variables_of(path, module, 3, renaming(layers, _LLAMAGEN_WORDS), ignore=_ignore)


def _ignore(name: str, tensor: np.ndarray) -> bool:
    """The last indices of their training, kept for an instrument."""
    return name == "quantize.codebook_used"
