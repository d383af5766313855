"""Features that keep where in the image something is."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Shaped


def spatial_features(
    maps: Shaped[ArrayLike, "batch height width channels"], channels: int = 7
) -> Shaped[np.ndarray, "batch features"]:
    """The first `channels` channels of feature maps, every position a feature of its own.

    Pooled features average over positions, so that a distance between them cannot tell a face from its parts
    shuffled. The Fréchet distance of these can: with Inception's maps of 17 × 17 it is the sFID.

    Raises:
        ValueError: not four axes, fewer channels than asked for.

    Source: Nash et al. 2021, section 4.
    """
    maps = np.asarray(maps)
    if maps.ndim != 4:
        raise ValueError(
            f"maps have shape {maps.shape}; expected [batch height width channels]: take them before pooling"
        )
    if maps.shape[-1] < channels:
        raise ValueError(
            f"maps have {maps.shape[-1]} channels; expected {channels} or more: take a wider layer, or pass "
            f"channels={maps.shape[-1]}"
        )
    return maps[..., :channels].reshape(len(maps), -1)
