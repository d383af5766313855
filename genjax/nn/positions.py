"""Fixed sine-cosine positions of a grid whose points need not lie at whole numbers."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


def sincos_table(
    rows: Shaped[np.ndarray, " height"], columns: Shaped[np.ndarray, " width"], features: int
) -> Float[Array, "length features"]:
    """Return positions for any coordinates of a grid's rows and columns, in float32.

    The first half of the features encodes the column and the second the row, each as [sines,
    cosines] of position·10000^(−i/(features/4)) (He et al. 2022, as released).

    Raises:
        ValueError: `features` is not divisible by four.
    """
    if features % 4:
        raise ValueError(
            f"a two-dimensional position table needs features divisible by 4; got {features}"
        )
    frequencies = 10_000.0 ** -(np.arange(features // 4) / (features / 4))

    def waves(axis):
        angles = np.outer(axis, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    # A program holds the waves of each axis and puts them together: the table of a long video is
    # larger than a network's layer.
    shape = len(rows), len(columns), features // 2
    halves = waves(columns)[None], waves(rows)[:, None]
    table = jnp.concatenate([jnp.broadcast_to(half, shape) for half in halves], axis=-1)
    return table.reshape(-1, features)


def interpolated_positions(
    height: int, width: int, features: int, base_size: int, interpolation_scale: float = 1.0
) -> Float[Array, "length features"]:
    """Return positions that span the same range whatever the grid's size.

    Point i of n along an axis lies at i·base_size/(n·interpolation_scale), whatever n is along the
    other axis. Sources: Xie et al. 2023, "DiffFit", for one change of resolution; Chen et al. 2024,
    "PixArt-α", as released.

    Args:
        base_size: points along a side of the grid on which the network was trained.
        interpolation_scale: by how much that grid is finer than the one of the network it was tuned
            from.
    """
    place = lambda size: np.arange(size) * (base_size / (size * interpolation_scale))
    return sincos_table(place(height), place(width), features)
