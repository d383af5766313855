"""Orders of a picture's sub-pixels: permutations of their places in raster order.

`order(shape)` gives the place of the sub-pixel that comes first, second, …: `sequence =
levels.ravel()[order]`. The channels of a pixel always follow one another, as red, green, blue.
"""

import numpy as np
from jaxtyping import Int

Order = Int[np.ndarray, " length"]


def raster(shape: tuple[int, int, int]) -> Order:
    """Return the order by rows from the top, each from left to right.

    Args:
        shape: height, width, channels.
    """
    return np.arange(np.prod(shape))


def columns(shape: tuple[int, int, int]) -> Order:
    """Return the order by columns from the left, each from top to bottom."""
    return raster(shape).reshape(shape).swapaxes(0, 1).ravel()


def serpentine(shape: tuple[int, int, int]) -> Order:
    """Return the order by rows that run from left to right and back in turn."""
    places = raster(shape).reshape(shape)
    places[1::2] = places[1::2, ::-1].copy()
    return places.ravel()
