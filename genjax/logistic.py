"""The logistic distribution on evenly spaced levels, for autoencoders and pixel by pixel models."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_mass(
    x: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."], levels: int
) -> Float[Array, "..."]:
    """Return the logarithm of the mass of a logistic within half a level of x.

    The lowest and the highest level take all the mass beyond them, so the masses of all levels sum
    to 1. No digits are lost however far x is from the mean.

    Args:
        x, mean, log_scale: arrays that broadcast.
        levels: the number of values that x can have, evenly from −1 to 1.

    Source: Salimans et al. 2017, "PixelCNN++", equation 2.
    """
    half, over_scale = 1 / (levels - 1), jnp.exp(-log_scale)
    above, below = (x - mean + half) * over_scale, (x - mean - half) * over_scale
    to_bottom = jax.nn.log_sigmoid(above)  # all mass up to x's level
    to_top = jax.nn.log_sigmoid(-below)
    # σ(a) − σ(b) = σ(a)·σ(−b)·(1 − exp(b − a)).
    width = 2 * half * over_scale  # of a level, in scales; 0 in float32 for the widest scales
    log_within = jnp.log(-jnp.expm1(-jnp.maximum(width, 1e-16)))
    # Below 1e-16, 1 − exp(−width) is the width up to rounding.
    log_within = jnp.where(width > 1e-16, log_within, math.log(2 * half) - log_scale)
    inner = to_bottom + to_top + log_within
    return jnp.where(x < half - 1, to_bottom, jnp.where(x > 1 - half, to_top, inner))
