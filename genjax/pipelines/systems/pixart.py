"""PixArt-α (Chen et al. 2024) and PixArt-Σ, which reads longer prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import noise_prediction


def _system(name: str, length: int) -> System:
    def encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
        """Return T5's states of lower-case prompts, padding masked, as a function of prompts."""

        def take(module: nn.Module, variables: Any, ids: Any, mask: Any) -> Text:
            return Text(module.apply(variables, ids, mask), None, mask)

        t5 = folder.encoder("", length, take)
        return lambda prompts: t5([prompt.lower().strip() for prompt in prompts])

    def settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
        return dict(
            empty="",
            size=folder.size(autoencoder, 128),
            num_steps=20,
            guidance_scale=4.5,
            **folder.config("scheduler", noise_prediction),
        )

    return System(name, encoder, settings, ("text_encoder", "tokenizer"))


SYSTEMS = (_system("PixArtAlphaPipeline", length=120), _system("PixArtSigmaPipeline", length=300))
