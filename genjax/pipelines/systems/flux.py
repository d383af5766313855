"""FLUX.1: dev, whose network takes the guidance scale, and schnell.

Steps and scales are diffusers' defaults. The authors' program takes 50 steps of dev.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import euler_flow

CLIP_LENGTH, T5_LENGTH, T5_LENGTH_OF_DEV = 77, 256, 512  # tokens
LATENTS = 128  # the default side of its pictures' latents


def _encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
    """Return CLIP's pooled state and T5's states as a function of prompts."""
    pooled = lambda module, variables, ids, mask: module.apply(variables, ids).pooled
    clip = folder.encoder("", CLIP_LENGTH, pooled)
    states = lambda module, variables, ids, mask: module.apply(variables, ids)
    dev = folder.config("transformer").get("guidance_embeds", False)
    t5 = folder.encoder("_2", T5_LENGTH_OF_DEV if dev else T5_LENGTH, states)
    return lambda prompts: Text(t5(prompts), clip(prompts))


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    return dict(
        empty="",
        size=(LATENTS * autoencoder.factor,) * 2,
        num_steps=28 if network.takes_guidance else 4,
        guidance_scale=3.5 if network.takes_guidance else 0.0,
        distilled=True,
        **folder.config("scheduler", euler_flow),
    )


_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
SYSTEMS = (System("FluxPipeline", _encoder, _settings, _PARTS),)
