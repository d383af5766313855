"""Images between bytes, as they are stored and travel, and floats, as networks see them.

Array methods only, so that each function takes NumPy and JAX arrays alike and works inside `jit`: with
`to_float` at the start of the compiled step a quarter of the bytes goes to the device.
"""

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8


def to_float(
    images: UInt8[Array | np.ndarray, "... height width channels"],
) -> Float32[Array | np.ndarray, "... height width channels"]:
    """Bytes 0 … 255 to floats in [−1, 1]: `value / 127.5 − 1`."""
    return images.astype("float32") / 127.5 - 1


def to_uint8(
    images: Float[Array | np.ndarray, "... height width channels"],
) -> UInt8[Array | np.ndarray, "... height width channels"]:
    """Floats in [−1, 1] to the nearest bytes; what lies beyond is clipped. The inverse of `to_float`."""
    return ((images.astype("float32") + 1) * 127.5).round().clip(0, 255).astype("uint8")
