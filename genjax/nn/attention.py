"""The one attention function that every network calls."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
) -> Float[Array, "batch queries heads features"]:
    """softmax(q·kᵀ/√features)·v, softmax in float32 whatever the inputs' type.

    Vaswani et al. 2017, equation 1. `mask` is True where a query may look.
    Differentiable forward and backward on every backend.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhf,bkhf->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bhqk,bkhf->bqhf", weights, value)
