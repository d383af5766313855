"""Fixed sine-cosine embeddings of positions and of time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.nn.positions import sincos_table


def sinusoidal_embedding(
    x: Float[Array, " batch"], features: int, max_period: float = 10_000.0
) -> Float[Array, "batch features"]:
    """Return [cos(x·w), sin(x·w)] with w_i = max_period^(−i/(features/2)), in float32.

    Vaswani et al. 2017, section 3.5, in the order (cosines first) and spacing of DiT.

    Raises:
        ValueError: `features` is odd.
    """
    if features % 2:
        raise ValueError(f"features are cosines and as many sines, an even number; got {features}")
    half = features // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = x.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_positions(height: int, width: int, features: int) -> Float[Array, "length features"]:
    """Return the fixed position table of DiT and MAE, row by row, in float32.

    It is `sincos_table` at 0, 1, 2, ….

    Raises:
        ValueError: `features` is not divisible by four.
    """
    return sincos_table(np.arange(height), np.arange(width), features)
