"""Write files in the format in which Fashion-MNIST is published."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        struct.pack(">I", length) for length in array.shape
    )
    path.write_bytes(gzip.compress(header + array.tobytes()))
