"""VQGANs as diffusers writes them, and the tokenizers of LlamaGen as their authors do."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.autoencoder_kl import (
    SHARED_DEFAULTS,
    layer_names,
    level_config,
    level_fields,
    load_folder,
    load_variables_of,
    names_of,
    one_for_all,
    renaming,
)
from genjax.pretrained.configuration import expect, read_config
from genjax.pretrained.safetensors_io import save_variables

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


def save(folder: str | os.PathLike, module: VQModel, variables: Any) -> None:
    """Writes what `load` and diffusers read.

    What trains the codebook is not kept, moving averages for example. Of a normalized one codes of unit length are saved:
    the nearest to latents of any length is the same.

    Raises:
        ValueError: latents have a mean or more than one deviation, or the quantizer is no `VectorQuantizer`, by name.
    """
    expect(vars(module), "latent_mean", (0.0,))
    expect(dict(quantizer=type(module.quantizer)), "quantizer", VectorQuantizer)
    config = dict(
        _class_name="VQModel",
        latent_channels=module.encoder_channels,
        num_vq_embeddings=module.quantizer.num_codes,
        vq_embed_dim=module.latent_channels,
        scaling_factor=1 / one_for_all(module, "latent_deviation"),
        **level_config(module, variables),
    )
    codes = module.apply(variables, method=lambda module: module.quantizer.codebook)
    save_variables(
        folder, config, {"params": variables["params"] | {"quantizer": {"codes": codes}}}, names_of(module)
    )


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
