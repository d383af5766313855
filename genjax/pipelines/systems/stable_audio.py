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
from genjax.pretrained.oobleck import OOBLECK


def _num_samples(folder: Folder, autoencoder: nn.Module) -> int:
    """Return the number of samples of the sounds that the network was trained on."""

    def frames(config: dict[str, Any]) -> int:
        config = dict(sample_size=1024) | config
        expect_kind(config, "sample_size", int)
        return config["sample_size"]

    return folder.config("transformer", frames) * autoencoder.factor


def _encoder(folder: Folder) -> Callable[[Sequence[TimedPrompt | str]], Text]:
    """Return T5's states, projected beside the seconds, as a function of timed prompts.

    A string alone is the text of a sound of the whole length.
    """
    encoder, encoder_variables = folder.part("text_encoder")
    projection, projection_variables = folder.part("projection_model")
    tokenizer = Tokenizer(folder.path / "tokenizer")
    config = read_json(folder.path / "tokenizer/tokenizer_config.json")
    expect_kind(dict(model_max_length=None) | config, "model_max_length", int)
    autoencoder = folder.config("vae", lambda config: OOBLECK.make(OOBLECK.complete(config)))
    whole = _num_samples(folder, autoencoder) / autoencoder.sample_rate

    @jax.jit
    def program(variables, ids, mask, start, end, has_text) -> Text:
        states = encoder.apply(variables[0], ids, mask)
        text = projection.apply(variables[1], states, start, end, mask)
        return text.replace(tokens=jnp.where(has_text[:, None, None], text.tokens, 0))

    def encode(prompts: Sequence[TimedPrompt | str]) -> Text:
        whole_sound = lambda text: TimedPrompt(text, 0.0, whole)
        timed = [whole_sound(each) if isinstance(each, str) else each for each in prompts]
        texts, *seconds = zip(*timed, strict=True)
        ids, mask = tokenizer.encode([text or "" for text in texts], config["model_max_length"])
        has_text = np.array([text is not None for text in texts])
        variables = encoder_variables, projection_variables
        return program(variables, ids, mask, *np.array(seconds, np.float32), has_text)

    return encode


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    return dict(
        empty=None,
        size=(_num_samples(folder, autoencoder),),
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
