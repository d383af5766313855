"""LTX-Video, text to video (HaCohen et al. 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import euler_flow

LENGTH = 128  # tokens


def _encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
    """Return T5's states, padding masked, as a function of prompts.

    T5 itself attends to the padding.
    """

    def take(module: nn.Module, variables: Any, ids: Any, mask: Any) -> Text:
        return Text(module.apply(variables, ids), None, mask)

    return folder.encoder("", LENGTH, take)


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    return dict(
        empty="",
        size=(512, 704),
        frames=161,
        num_steps=50,
        guidance_scale=3.0,
        **folder.config("scheduler", euler_flow),
    )


SYSTEMS = (System("LTXPipeline", _encoder, _settings, ("text_encoder", "tokenizer")),)
