"""Stable Audio Open, text to sound (Evans et al. 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.tokenizers import Tokenizer
from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import cosine_dpm
from genjax.pipelines.sounds import SoundPipeline, TimedPrompt
from genjax.pretrained.configuration import expect_kind, read_json


def _encoder(folder: Folder) -> Callable[[Sequence[TimedPrompt]], Text]:
    """Return T5's states, projected beside the seconds, as a function of timed prompts."""
    encoder, encoder_variables = folder.part("text_encoder")
    projection, projection_variables = folder.part("projection_model")
    tokenizer = Tokenizer(folder.path / "tokenizer")
    config = read_json(folder.path / "tokenizer/tokenizer_config.json")
    expect_kind(dict(model_max_length=None) | config, "model_max_length", int)

    @jax.jit
    def program(variables, ids, mask, start, end, has_text) -> Text:
        states = encoder.apply(variables[0], ids, mask)
        text = projection.apply(variables[1], states, start, end, mask)
        return text.replace(tokens=jnp.where(has_text[:, None, None], text.tokens, 0))

    def encode(prompts: Sequence[TimedPrompt]) -> Text:
        texts, *seconds = zip(*prompts, strict=True)
        ids, mask = tokenizer.encode([text or "" for text in texts], config["model_max_length"])
        has_text = np.array([text is not None for text in texts])
        variables = encoder_variables, projection_variables
        return program(variables, ids, mask, *np.array(seconds, np.float32), has_text)

    return encode


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    def samples(config: dict[str, Any]) -> int:
        config = dict(sample_size=1024) | config
        expect_kind(config, "sample_size", int)
        return config["sample_size"] * autoencoder.factor

    return dict(
        empty=None,
        size=(folder.config("transformer", samples),),
        num_steps=100,
        guidance_scale=7.0,
        **folder.config("scheduler", cosine_dpm),
    )


SYSTEMS = (
    System(
        "StableAudioPipeline",
        _encoder,
        _settings,
        ("text_encoder", "tokenizer", "projection_model"),
        pipeline=SoundPipeline,
    ),
)
