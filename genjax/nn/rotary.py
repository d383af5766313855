"""Rotary positions (Su et al. 2021, "RoFormer"), of one axis or several."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def grid_positions(*sides: int) -> np.ndarray:
    """Return the integer coordinates of a grid's points in row-major order, `[points, axes]`."""
    return np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).reshape(
        -1, len(sides)
    )


def rotary_positions(
    positions: Num[np.ndarray, "length axes"], features: tuple[int, ...], theta: float = 10_000.0
) -> Float[np.ndarray, "length pairs 2"]:
    """Return (cos, sin) of the angles by which `rotate` turns each pair of features, in float32.

    Each axis has its own pairs: the i-th of `n` features turns by position·theta^(−2i/n) (Su et al.
    2021, equation 15; several axes as in FLUX.1). Angles are made in float64: at position 4096
    those of float32 are wrong by 2e-4.

    Args:
        positions: a coordinate for each axis; they need not be integers.
        features: how many of a head's features each axis has.

    Raises:
        ValueError: there are not as many `features` as axes, or one is odd.
    """
    if len(features) != positions.shape[1] or any(n % 2 for n in features):
        raise ValueError(
            f"{positions.shape[1]} axes need as many even numbers of features; got {features}"
        )
    angles = [
        np.outer(axis, theta ** (-np.arange(0, n, 2, dtype=np.float64) / n))
        for axis, n in zip(positions.T, features, strict=True)
    ]
    angles = np.concatenate(angles, axis=1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def grid_rotations(
    axes: Sequence[Num[np.ndarray, "..."]], features: tuple[int, ...], theta: float = 10_000.0
) -> Float[Array, "length pairs 2"]:
    """Return `rotary_positions` of every point of a grid, in row-major order.

    A program holds the angles of each axis and puts them together. The table of a long video would
    be larger than a network's layer.

    Args:
        axes: the coordinates along each axis; they need not be integers.
        features: how many of a head's features each axis has.

    Raises:
        ValueError: there are not as many `features` as axes, or one is odd.
    """
    if len(features) != len(axes):
        raise ValueError(f"{len(axes)} axes need as many numbers of features; got {features}")
    sides = [len(axis) for axis in axes]
    tables = []
    for i, (axis, n) in enumerate(zip(axes, features, strict=True)):
        table = rotary_positions(axis[:, None], (n,), theta)
        apart = np.expand_dims(table, [j for j in range(len(axes)) if j != i])
        tables.append(jnp.broadcast_to(apart, (*sides, n // 2, 2)))
    return jnp.concatenate(tables, axis=-2).reshape(-1, sum(features) // 2, 2)


def rotate(
    x: Float[Array, "batch length heads features"],
    rotations: Float[Array | np.ndarray, "*examples length pairs 2"],
) -> Float[Array, "batch length heads features"]:
    """Turn each pair of features (2i, 2i + 1) of queries or keys by its angle, in float32.

    The product of a query and a key then depends on the difference of their positions alone (Su et
    al. 2021, equation 16). The result is of the type of `x`.
    """
    cos, sin = jnp.moveaxis(rotations[..., None, :, :], -1, 0)
    real, imaginary = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def rotations_at(
    positions: Num[Array | np.ndarray, "*examples length axes"],
    features: tuple[int, ...],
    theta: float = 10_000.0,
) -> Float[Array, "*examples length pairs 2"]:
    """Return `rotary_positions` of positions that a program computes, by angles in float32.

    Args:
        positions: of each token; tokens of different examples may have different ones.
        features: how many of a head's features each axis has.
    """
    angles = [
        positions[..., i, None] * (theta ** (-np.arange(0, n, 2) / n)).astype(np.float32)
        for i, n in enumerate(features)
    ]
    angles = jnp.concatenate(angles, axis=-1)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
