"""DiT (Peebles & Xie 2023), class-conditional."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from genjax.pipelines.folders import Folder, System
from genjax.pipelines.schedules import noise_prediction


def _settings(folder: Folder, network: nn.Module, autoencoder: nn.Module) -> dict[str, Any]:
    return dict(
        empty=network.null_label,
        size=folder.size(autoencoder, 32),
        num_steps=50,
        guidance_scale=4.0,
        **folder.config("scheduler", noise_prediction),
    )


def _encoder(folder: Folder) -> Callable[[Sequence[int]], Int[Array, " batch"]]:
    return lambda labels: jnp.asarray(labels, jnp.int32)


SYSTEMS = (System("DiTPipeline", _encoder, _settings),)
