"""Stable Diffusion 3 and 3.5 (Esser et al. 2024).

Sampler, steps and scale are diffusers' defaults. Stability's program takes DPM-Solver++(2M), 40 or
50 steps, scales of 4.5 to 5, and no shift for Stable Diffusion 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import diffusion
from genjax.diffusion import grids, samplers
from genjax.nn import Text
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import flow_matching
from genjax.pretrained.configuration import expect
from genjax.pretrained.sd3 import SD3

CLIP_LENGTH, T5_LENGTH = 77, 256  # tokens


def _clip(module: nn.Module, variables: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """Return the states before the last block, padding included, and the projected pooled state."""
    encoded = module.apply(variables, ids)
    return encoded.states[-2], encoded.projected


def _encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
    """Return two CLIPs side by side, followed by T5's states if there is a T5 (section 5.1)."""
    clips = [folder.encoder(suffix, CLIP_LENGTH, _clip) for suffix in ("", "_2")]
    width = folder.config("transformer", SD3.complete)["joint_attention_dim"]
    if folder.class_of("text_encoder_3"):
        states = lambda module, variables, ids, mask: module.apply(variables, ids)
        t5 = folder.encoder("_3", T5_LENGTH, states)
    else:
        t5 = lambda prompts: jnp.zeros((len(prompts), T5_LENGTH, width))

    @jax.jit
    def join(states, pooled, rest):
        side_by_side = jnp.concatenate(states, axis=-1)
        side_by_side = jnp.pad(side_by_side, ((0, 0), (0, 0), (0, width - side_by_side.shape[-1])))
        tokens = jnp.concatenate([side_by_side, rest], axis=1)
        return Text(tokens, jnp.concatenate(pooled, axis=-1))

    def condition(prompts: Sequence[str]) -> Text:
        states, pooled = zip(*(encode(prompts) for encode in clips), strict=True)
        return join(states, pooled, t5(prompts))

    return condition


def _shift(entries: Mapping[str, Any]) -> float:
    """Return the shift of a schedule that neither depends on the size nor ends early."""
    schedule = flow_matching(entries, False)
    expect(schedule, "shift_terminal", None)
    return schedule["shift"]


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    process = diffusion.RectifiedFlow()
    shift = folder.config("scheduler", _shift)
    return dict(
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=lambda num_steps, tokens: grids.stable_diffusion_3_grid(process, num_steps, shift),
        size=folder.size(autoencoder, 128),
        num_steps=28,
        guidance_scale=7.0,
    )


_T5 = ("text_encoder_3", "tokenizer_3")
_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", *_T5)
SYSTEMS = (System("StableDiffusion3Pipeline", _encoder, _settings, _PARTS, optional=_T5),)
