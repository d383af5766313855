"""The one attention function that every network calls."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention_weights(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """softmax(scale·q·kᵀ + bias) in float32: how much each query looks at each key; as in `attention`."""
    if scale is None:
        scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhf,bkhf->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits)


def attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch queries heads features"]:
    """softmax(scale·q·kᵀ + bias)·v, softmax in float32 whatever the inputs' type.

    Vaswani et al. 2017, equation 1. `mask` is True where a query may look; `scale` is 1/√features if None.
    Differentiable forward and backward on every backend.
    """
    weights = attention_weights(query, key, mask, bias, scale).astype(value.dtype)
    return jnp.einsum("bhqk,bkhf->bqhf", weights, value)
