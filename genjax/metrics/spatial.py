"""Features that keep the position of things in an image."""

import math

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Shaped


def spatial_features(
    maps: Shaped[ArrayLike, "batch height width channels"], channels: int = 7
) -> Shaped[np.ndarray, "batch features"]:
    """Return the first `channels` channels of feature maps, with each position as its own feature.

    Pooled features average over positions, so their distance cannot tell a face from its shuffled
    parts. The Fréchet distance of spatial features can. With Inception's maps of 17 × 17 it is the
    sFID.

    Raises:
        ValueError: maps do not have four axes, or have fewer channels than `channels`.

    Source: Nash et al. 2021, section 4.
    """
    maps = np.asarray(maps)
    if maps.ndim != 4:
        raise ValueError(
            f"maps have shape {maps.shape}; expected [batch height width channels]: take them "
            "before pooling"
        )
    if maps.shape[-1] < channels:
        raise ValueError(
            f"maps have {maps.shape[-1]} channels; expected {channels} or more: take a wider "
            f"layer, or pass channels={maps.shape[-1]}"
        )
    return maps[..., :channels].reshape(len(maps), math.prod(maps.shape[1:3]) * channels)
