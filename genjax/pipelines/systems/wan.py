"""Wan 2.1, text to video (Wan team 2025)."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import unipc_flow
from genjax.pretrained.configuration import expect

LENGTH = 512  # tokens


def _encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
    """Return UMT5's states, zero at padding and not masked, as a function of prompts."""

    def take(module: nn.Module, variables: Any, ids: Any, mask: Any) -> Text:
        return Text(module.apply(variables, ids, mask) * mask[..., None])

    umt5 = folder.encoder("", LENGTH, take)
    clean = lambda prompt: " ".join(html.unescape(html.unescape(prompt)).split())
    return lambda prompts: umt5([clean(prompt) for prompt in prompts])


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    """Return the settings; the folder's schedule has the shift, 3 for 480p and 5 for 720p."""
    entries = dict(boundary_ratio=None, expand_timesteps=False) | folder.index
    expect(entries, "boundary_ratio", None)  # Wan 2.2 has two networks, or times of tokens
    expect(entries, "expand_timesteps", False)
    return dict(
        empty="",
        size=(480, 832),
        frames=81,
        num_steps=50,
        guidance_scale=5.0,
        **folder.config("scheduler", unipc_flow),
    )


SYSTEMS = (System("WanPipeline", _encoder, _settings, ("text_encoder", "tokenizer")),)
