"""VQGANs as diffusers publishes them."""

from typing import Any

from jaxtyping import PyTree

from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.autoencoder_kl import (
    LEVEL_ENTRIES,
    LEVEL_EXAMPLE,
    LEVEL_UNUSED,
    attention_levels,
    convert,
    level_config,
    moments,
    names,
    smallest_image,
)
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.published import DIFFUSERS, Config, Published


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
    writes=lambda module: not isinstance(module.quantizer, MultiScaleQuantizer),
    examples=(LEVEL_EXAMPLE | dict(latent_channels=5, num_vq_embeddings=7, vq_embed_dim=2),),
)
PUBLISHED = (VQ_MODEL,)
