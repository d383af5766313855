"""Which labels a sample sheet shows."""

import numpy as np

SHOWN_ROWS = 32


def shown_labels(num_rows: int) -> np.ndarray:
    """Return all labels, or, of more than `SHOWN_ROWS`, at most so many, equally far apart."""
    return np.arange(num_rows)[:: -(-num_rows // SHOWN_ROWS)]


def sheet_labels(num_rows: int, per_row: int) -> np.ndarray:
    """Return the labels of a sheet with a row for each of the `shown_labels`."""
    return np.repeat(shown_labels(num_rows), per_row)
