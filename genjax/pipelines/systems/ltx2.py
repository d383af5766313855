"""LTX-2, text to video with sound (HaCohen et al. 2026)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.data.tokenizers import Tokenizer
from genjax.models.transformers.ltx2 import FRAMES_PER_SECOND
from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import euler_flow
from genjax.pipelines.videos_with_sound import Scales, VideoSoundPipeline

LENGTH = 1024  # tokens
# The steps of the distilled networks, as `times`: first at a low size, then from latents at twice
# the size. The first are Mochi's linear-quadratic schedule of 8 steps with threshold .025.
DISTILLED_TIMES = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
SECOND_STAGE_TIMES = (0.909375, 0.725, 0.421875, 0.0)


def _encoder(folder: Folder) -> Callable[[Sequence[str]], dict[str, Text]]:
    """Return the connectors' texts, from all states of Gemma 3, as a function of prompts."""
    gemma, gemma_variables = folder.part("text_encoder")
    connectors, connector_variables = folder.part("connectors")
    tokenizer = Tokenizer(folder.path / "tokenizer")

    @jax.jit
    def program(variables, ids, mask):
        states = gemma.apply(variables[0], ids, mask)
        return connectors.apply(variables[1], jnp.moveaxis(states, 0, 2), mask)

    variables = gemma_variables, connector_variables
    encode = lambda prompts: tokenizer.encode([each.strip() for each in prompts], LENGTH, "left")
    return lambda prompts: program(variables, *encode(prompts))


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    """Return the settings, which for the network's version are its authors'."""
    block = 28 if network.gated else 29
    return dict(
        empty="",
        size=(512, 768),
        frames=121,
        frame_rate=FRAMES_PER_SECOND,
        num_steps=30 if network.gated else 40,
        scales=Scales(dict(video=3.0, audio=7.0), 1.0, 3.0, 0.7),
        perturbed_blocks=(min(block, network.depth - 1),),
        sound=(folder.part("audio_vae"), folder.part("vocoder")),
        **folder.config("scheduler", euler_flow),
    )


SYSTEMS = (
    System(
        "LTX2Pipeline",
        _encoder,
        _settings,
        ("text_encoder", "tokenizer", "connectors"),
        pipeline=VideoSoundPipeline,
    ),
)
