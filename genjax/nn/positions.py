"""Fixed sine-cosine positions of a grid whose points need not lie at whole numbers."""

import numpy as np
from jaxtyping import Float, Shaped


def sincos_table(
    rows: Shaped[np.ndarray, " height"], columns: Shaped[np.ndarray, " width"], features: int
) -> Float[np.ndarray, "length features"]:
    """For any coordinates of a grid's rows and columns; float32.

    The first half of the features encodes the column and the second the row, each as [sines, cosines] of
    position·10000^(−i/(features/4)) (He et al. 2022, as released).

    Raises:
        ValueError: `features` is not divisible by four.
    """
    if features % 4:
        raise ValueError(f"a two-dimensional position table needs features divisible by 4; got {features}")
    frequencies = 10_000.0 ** -(np.arange(features // 4) / (features / 4))
    rows, columns = np.meshgrid(rows, columns, indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def interpolated_positions(
    height: int, width: int, features: int, base_size: int, interpolation_scale: float = 1.0
) -> Float[np.ndarray, "length features"]:
    """Positions that span the same range whatever the grid's size, so that a network may be used at others.

    Point i of n along either axis lies at i·base_size/(n·interpolation_scale), whatever n along the other is
    (Xie et al. 2023, "DiffFit", for one change of resolution; Chen et al. 2024, "PixArt-α", as released).

    Args:
        base_size: points along a side of the grid on which the network was trained.
        interpolation_scale: by how much that grid is finer than the one of the network it was tuned from.
    """
    place = lambda size: np.arange(size) * (base_size / (size * interpolation_scale))
    return sincos_table(place(height), place(width), features)
