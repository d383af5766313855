"""Autoencoders of images as the authors of LlamaGen, VAR and MAR publish them.

The authors publish pickled state dicts without a configuration. A folder holds the tensors as
`model.safetensors`, and a `config.json` that names the class, {"_class_name": "VARTokenizer"}. Its
other entries are the fields of our modules. By default they have the published sizes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.vqgan import VQModel
from genjax.models.autoregressive.var import SIDES_256
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.autoencoder_kl import convert, level_names
from genjax.pretrained.configuration import Field, expect
from genjax.pretrained.layouts import STACKED, part_of_stack, to_torch
from genjax.pretrained.published import Config, Library, Published, example
from genjax.pretrained.safetensors_io import NAMES

AUTHORS = Library(None, NAMES[1], lambda name, dtype: dict(_class_name=name))
_KINDS = {
    **dict(block="block", attention="attn"),
    **dict(downsample="downsample.conv", upsample="upsample.conv"),
}
_WORDS = dict(query="q", key="k", value="v", projection="proj_out", shortcut="nin_shortcut")
_MIDDLE = dict(mid_block_0="mid.block_1", mid_attention="mid.attn_1", mid_block_1="mid.block_2")
_LLAMAGEN_KINDS = _KINDS | dict(block="res")
_LLAMAGEN_WORDS = _WORDS | dict(quantizer="quantize.embedding")
_LLAMAGEN_WORDS |= dict(mid_block_0="mid.0", mid_attention="mid.1", mid_block_1="mid.2")
_MAR_WORDS = _WORDS | _MIDDLE
_VAR_WORDS = _WORDS | _MIDDLE | dict.fromkeys(STACKED, "qkv")
_VAR_WORDS |= dict(quantizer="quantize", codes="embedding.weight")


def _levels(*widths: int) -> dict[str, Field]:
    return dict(widths=Field("widths", [*widths]), blocks=Field("blocks", 2))


def _last_level(config: Config) -> tuple[int]:
    """Return the level with attention, that of the codes' side."""
    return (len(config["widths"]) - 1,)


def _image(module: Any, config: Config) -> tuple:
    return (example(module.factor, module.factor, 3),)


def _names_from_images(module: Any, words: Mapping[str, str]) -> Callable[[str], str]:
    """Return the names of authors who count levels of the decoder from the images, as we do."""
    names = level_names(module, "{direction}.{level}", _KINDS, words)
    last = len(module.widths) - 1
    from_images = lambda match: f"decoder.up.{last - int(match[1])}."
    return lambda variable: re.sub(r"^decoder\.up\.(\d+)\.", from_images, names(variable))


def _convert_llamagen(module: VQModel, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Give the codes unit length.

    The authors do so at every use. Their latents have unit length too, which does not change the
    nearest code.
    """
    if variable.endswith("quantizer/codes"):
        codes = tensor.astype(np.float32)
        return codes / np.maximum(np.linalg.norm(codes, axis=-1, keepdims=True), 1e-12)
    return convert(module, variable, tensor)


# Sun et al. 2024, tokenizer/tokenizer_image/vq_model.py.
LLAMAGEN_TOKENIZER = Published(
    AUTHORS,
    "LlamaGenTokenizer",
    VQModel,
    entries=_levels(128, 128, 256, 256, 512)
    | dict(encoder_channels=Field("encoder_channels", 256), num_codes=16_384, features=8),
    build=lambda config: dict(
        quantizer=VectorQuantizer(config["num_codes"], config["features"]),
        attention_levels=_last_level(config),
    ),
    inputs=_image,
    names=lambda module, tensors: level_names(
        module, "conv_blocks.{level}", _LLAMAGEN_KINDS, _LLAMAGEN_WORDS
    ),
    convert=_convert_llamagen,
    # The last indices of the authors' training.
    ignore=lambda name, tensor: name == "quantize.codebook_used",
    writes=lambda module: False,  # as diffusers' VQModel instead
    examples=(dict(widths=[32, 64], blocks=1, encoder_channels=5, num_codes=7, features=2),),
)

# Li et al. 2024, models/vae.py. The authors multiply latents by .2325.
MAR_AUTOENCODER = Published(
    AUTHORS,
    "MARAutoencoder",
    AutoencoderKL,
    entries=_levels(128, 128, 256, 256, 512) | dict(latent_channels=Field("latent_channels", 16)),
    build=lambda config: dict(
        attention_levels=_last_level(config),
        decoder_attention_levels=(),
        latent_deviation=(1 / 0.2325,),
    ),
    inputs=_image,
    names=lambda module, tensors: _names_from_images(module, _MAR_WORDS),
    convert=convert,
    ignore=lambda name, tensor: name.startswith("loss."),  # networks of the authors' training
    writes=lambda module: False,  # as diffusers' AutoencoderKL instead
    examples=(dict(widths=[32, 64], blocks=1, latent_channels=2),),
)

_QUANTIZER = dict(
    num_codes=4096, features=32, sides=[*SIDES_256], num_refinements=4, refinement=0.5
)


def _build_var(config: Config) -> dict[str, Any]:
    fields = {name: config[name] for name in _QUANTIZER} | dict(sides=tuple(config["sides"]))
    return dict(
        quantizer=MultiScaleQuantizer(**fields),
        encoder_channels=config["features"],
        attention_levels=_last_level(config),
        quant_side=3,
    )


def _config_var(module: VQModel, variables: PyTree) -> dict[str, Any]:
    config = {name: getattr(module.quantizer, name) for name in _QUANTIZER}
    config |= dict(sides=[*module.quantizer.sides])
    made = _build_var(config | dict(widths=module.widths))
    made |= dict(quantizer=module.quantizer, mid_attention=True, groups=32, image_channels=3)
    for name, value in made.items():
        expect(vars(module), name, value)
    return config


def _names_var(module: VQModel) -> Callable[[str], str]:
    names = _names_from_images(module, _VAR_WORDS)
    refinement = (r"\.convolutions_(\d+)\.", r".quant_resi.qresi_ls.\1.")
    return lambda variable: re.sub(*refinement, names(variable))


def _convert_var(module: VQModel, variable: str, tensor: np.ndarray) -> np.ndarray:
    """Take one of the three layers of an attention block, which a tensor stacks."""
    return convert(module, variable, part_of_stack(variable, tensor))


def _pack_var(module: VQModel, variables: PyTree) -> PyTree:
    """Keep the codebook's codes without moving averages, and stack layers of attention blocks."""
    codes = module.apply(variables, method=lambda module: module.quantizer.vectors.codebook)
    params = variables["params"]
    return {"params": _stacked(params | {"quantizer": params["quantizer"] | {"codes": codes}})}


def _stacked(params: PyTree) -> PyTree:
    """Return parameters with one layer "qkv" in place of query, key and value."""
    if not isinstance(params, Mapping):
        return params
    if "query" in params:
        layers = [params[name] for name in STACKED]
        others = {name: params[name] for name in params if name not in STACKED}
        stack = lambda leaf: np.concatenate([layer[leaf] for layer in layers], axis=-1)
        return others | dict(qkv={leaf: stack(leaf) for leaf in layers[0]})
    return {name: _stacked(part) for name, part in params.items()}


def _invert_var(module: VQModel, variable: str, array: np.ndarray) -> np.ndarray:
    if re.search(r"/(qkv|projection)/kernel$", variable):  # a 1×1 convolution there
        return array.T[:, :, None, None]
    return to_torch(variable, array)


# Tian et al. 2024, models/vqvae.py.
VAR_TOKENIZER = Published(
    AUTHORS,
    "VARTokenizer",
    VQModel,
    entries=_levels(160, 160, 320, 320, 640) | _QUANTIZER,
    build=_build_var,
    config=_config_var,
    inputs=lambda module, config: (example(*2 * [module.factor * config["sides"][-1]], 3),),
    names=lambda module, tensors: _names_var(module),
    convert=_convert_var,
    invert=_invert_var,
    pack=_pack_var,
    # How often codes were used in the authors' training.
    ignore=lambda name, tensor: name == "quantize.ema_vocab_hit_SV",
    writes=lambda module: isinstance(module.quantizer, MultiScaleQuantizer),
    examples=(dict(widths=[32, 64], blocks=1, num_codes=7, features=3, sides=[1, 2, 3]),),
)
PUBLISHED = (LLAMAGEN_TOKENIZER, MAR_AUTOENCODER, VAR_TOKENIZER)
