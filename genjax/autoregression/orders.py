"""Orders of a picture's sub-pixels: permutations of their places in raster order.

`order(shape)` gives the place of the sub-pixel that comes first, second, …: `sequence =
levels.ravel()[order]`. The channels of a pixel always follow one another, as red, green, blue.
"""

import itertools

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
    """Return the order by columns from the left, each from top to bottom.

    A network of rows and columns needs square pictures in this order, because it reads
    `levels.ravel()[order]` as the transposed picture.
    """
    return raster(shape).reshape(shape).swapaxes(0, 1).ravel()


def serpentine(shape: tuple[int, int, int]) -> Order:
    """Return the order by rows that run from left to right and back in turn."""
    places = raster(shape).reshape(shape)
    places[1::2] = places[1::2, ::-1].copy()
    return places.ravel()


def halton(shape: tuple[int, int, int]) -> Order:
    """Return the order in which Halton's points (bases 2 and 3) first reach each pixel.

    Any first part of it is spread evenly over the picture (Besnier et al. 2025, section 4);
    see `reveal_in_order`.

    Args:
        shape: height, width, channels.
    """
    height, width, channels = shape
    reached = {}  # a dict keeps the order of its keys
    for index in itertools.count(1):
        (row, rows), (column, columns) = (_radical_inverse(index, base) for base in (2, 3))
        row, column = row * height // rows, column * width // columns
        reached[row * width + column] = None
        if len(reached) == height * width:
            break
    return (np.array(list(reached))[:, None] * channels + np.arange(channels)).ravel()


def _radical_inverse(index: int, base: int) -> tuple[int, int]:
    """Return the fraction whose digits behind the point are those of `index`, backwards."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator, denominator
