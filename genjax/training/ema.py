"""Exponential moving average of parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


def update_ema(ema: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """ema ← d·ema + (1 − d)·params with d = min(decay, (1 + step)/(10 + step)), so that early weights fade fast.

    Args:
        step: updates made before this one; at 0 the average starts as 0.1·ema + 0.9·params.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), ema, params)
