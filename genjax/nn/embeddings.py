"""Fixed sine-cosine embeddings of positions and of time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoidal_embedding(
    x: Float[Array, " batch"], features: int, max_period: float = 10_000.0
) -> Float[Array, "batch features"]:
    """[cos(x·w), sin(x·w)] with w_i = max_period^(−i/(features/2)), in float32.

    Vaswani et al. 2017, section 3.5, in the order (cosines first) and spacing of DiT.
    """
    half = features // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = x.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_positions(height: int, width: int, features: int) -> np.ndarray:
    """The fixed position table of DiT and MAE, `[height·width, features]`, float32.

    The first half of the features encodes the column and the second the row, each as
    [sines, cosines] of position·10000^(−i/(features/4)) (He et al. 2022, as released).

    Raises:
        ValueError: `features` is not divisible by four.
    """
    if features % 4:
        raise ValueError(f"a two-dimensional position table needs features divisible by 4; got {features}")
    frequencies = 10_000.0 ** -(np.arange(features // 4) / (features / 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return table.astype(np.float32)
