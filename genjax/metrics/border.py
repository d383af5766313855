"""Checks that every metric makes of its arrays."""

import numpy as np
from jax.typing import ArrayLike


def as_matrix(array: ArrayLike, name: str, at_least: int = 1) -> np.ndarray:
    """Return `array` in float64; raise ValueError unless it is a finite matrix with enough rows."""
    matrix = np.asarray(array, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(
            f"{name} has shape {matrix.shape}; expected two axes, one row per example: "
            "flatten or pool the other axes first"
        )
    if len(matrix) < at_least:
        raise ValueError(
            f"{name} has {len(matrix)} rows; expected {at_least} or more: pass more examples"
        )
    check_finite(matrix, name)
    return matrix


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise ValueError, which calls the array by `name`, if it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or infinity; expected finite numbers: look at what computed them "
            "(a diverged model, an overflow in float16?)"
        )


def check_same_width(**matrices: np.ndarray) -> None:
    """Raise ValueError, which calls the matrices by their keywords, if their widths differ."""
    widths = {name: matrix.shape[-1] for name, matrix in matrices.items()}
    if len(set(widths.values())) > 1:
        given = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise ValueError(
            f"{given} features; expected equal numbers: use one feature extractor for all"
        )
