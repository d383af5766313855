"""Attention in memory proportional to the length: an online softmax over chunks of keys.

Rabe and Staats 2021, "Self-attention does not need O(n²) memory". The backward pass is that of Dao
et al. 2022 ("FlashAttention", algorithm 4): it computes the weights again, from each query's
largest logit and sum.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.nn.attention.segments import (
    PADDING_SEGMENT,
    Mask,
    Segments,
    of_keys,
    whole,
    with_queries,
)

CHUNK_BYTES = (
    2**27
)  # of the logits of a chunk: little beside an accelerator's memory, and still one large product
LEAST_CHUNK = 128  # keys; the matrix units of accelerators are this wide

Queries = Float[Array, "batch queries heads features"]
Keys = Float[Array, "batch keys heads features"]
Bias = Float[Array, "#batch #heads #queries keys"] | None
PerQuery = Float[Array, "batch heads queries"]


def scaled(query: Queries, scale: float | None) -> Queries:
    """Return scale·query, with a scale of 1/√features if it is None."""
    return query * (query.shape[-1] ** -0.5 if scale is None else scale)


def attention_logits(
    query: Queries, key: Keys, mask: Mask, bias: Bias
) -> Float[Array, "batch heads queries keys"]:
    """Return q·kᵀ + bias in float32, and float32's least number where the mask is False."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if query.shape[1] == 1:
        # XLA's CPU back end would copy the keys for a product with a dimension of one query.
        logits = product("bhf,bhkf->bhk", query[:, 0], key.swapaxes(1, 2))[:, :, None]
    else:
        logits = product("bqhf,bkhf->bhqk", query, key)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(whole(mask), logits, jnp.finfo(jnp.float32).min)
    return logits


def pad_keys(
    key: Keys, value: Keys, mask: Mask, bias: Bias, multiple: int
) -> tuple[
    Float[Array, "batch padded heads features"],
    Float[Array, "batch padded heads features"],
    Bool[Array, "#batch #heads #queries padded"] | Segments | None,
    Float[Array, "#batch #heads #queries padded"] | None,
]:
    """Add keys up to a multiple of a number. The mask hides the added keys from all queries."""
    length = key.shape[1]
    excess = -length % multiple
    if not excess:
        return key, value, mask, bias
    if mask is None:
        mask = jnp.ones((1, 1, 1, length), bool)
    key, value = (jnp.pad(a, ((0, 0), (0, excess), (0, 0), (0, 0))) for a in (key, value))
    number = PADDING_SEGMENT if isinstance(mask, Segments) else 0
    fill = lambda a, number=0: jnp.pad(
        a, ((0, 0), (0, 0), (0, 0), (0, excess)), constant_values=number
    )
    of_all = jax.tree.map(functools.partial(fill, number=number), of_keys(mask))
    return key, value, with_queries(of_all, mask), jax.tree.map(fill, bias)


class Softmax(NamedTuple):
    """Each query's attention to the keys seen so far.

    Attributes:
        highest: the largest logit.
        total: Σ exp(logit − highest).
        weighted: Σ exp(logit − highest)·value.
    """

    highest: PerQuery
    total: PerQuery
    weighted: Float[Array, "batch heads queries features"]

    @property
    def output(self) -> Queries:
        return jnp.moveaxis(self.weighted / self.total[..., None], 1, 2)


def start(query: Queries) -> Softmax:
    """Return the state before any key.

    The largest logit is the least number, not −∞: the difference of −∞ to itself is not a number.
    """
    batch, queries, heads, features = query.shape
    zeros = jnp.zeros((batch, heads, queries, features), jnp.float32)
    return Softmax(jnp.full_like(zeros[..., 0], jnp.finfo(jnp.float32).min), zeros[..., 0], zeros)


def absorb(
    softmax: Softmax, query: Queries, key: Keys, value: Keys, mask: Mask, bias: Bias, chunk: int
) -> Softmax:
    """Return the state after these keys too, with the logits of `chunk` keys in memory at once."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(softmax, keys):
        key, value, of_chunk, bias = keys
        logits = attention_logits(query, key, with_queries(of_chunk, mask), bias)
        # The output does not depend on what is subtracted from all logits.
        highest = jnp.maximum(softmax.highest, jax.lax.stop_gradient(logits.max(-1)))
        weights = jnp.exp(logits - highest[..., None])
        decay = jnp.exp(softmax.highest - highest)
        weighted = jnp.einsum(
            "bhqk,bkhf->bhqf",
            weights.astype(value.dtype),
            value,
            preferred_element_type=jnp.float32,
        )
        total = softmax.total * decay + weights.sum(-1)
        return Softmax(highest, total, softmax.weighted * decay[..., None] + weighted), None

    return jax.lax.scan(step, softmax, _split(key, value, mask, bias, chunk))[0]


class QueryResiduals(NamedTuple):
    """The inputs of a backward pass that belong to the queries.

    Attributes:
        highest: the largest logit over all keys.
        total: Σ exp(logit − highest) over all keys.
        gradient: of the loss by the output.
        inner: Σ gradient·output over the features.
    """

    query: Queries
    highest: PerQuery
    total: PerQuery
    gradient: Queries
    inner: PerQuery


def query_residuals(
    query: Queries, output: Queries, highest: PerQuery, total: PerQuery, gradient: Queries
) -> QueryResiduals:
    inner = jnp.einsum("bqhf,bqhf->bhq", gradient, output, preferred_element_type=jnp.float32)
    return QueryResiduals(query, highest, total, gradient, inner)


def gradients(
    by: QueryResiduals, key: Keys, value: Keys, mask: Mask, bias: Bias, chunk: int
) -> tuple[Queries, Keys, Keys, Bias]:
    """Return gradients by key, value and bias, and these keys' part of the query's; float32."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(of_query, keys):
        key, value, of_chunk, bias = keys
        admitted = whole(with_queries(of_chunk, mask))
        logits = attention_logits(by.query, key, admitted, bias)
        weights = jnp.exp(logits - by.highest[..., None]) / by.total[..., None]
        of_weights = product("bqhf,bkhf->bhqk", by.gradient, value)
        of_logits = weights * (of_weights - by.inner[..., None])
        if admitted is not None:  # a query without visible keys has weights on hidden ones
            of_logits = jnp.where(admitted, of_logits, 0)
        of_products = of_logits.astype(key.dtype)
        of_key = product("bhqk,bqhf->bkhf", of_products, by.query)
        of_value = product("bhqk,bqhf->bkhf", weights.astype(value.dtype), by.gradient)
        of_bias = None
        if bias is not None:
            broadcast = [axis for axis in range(3) if bias.shape[axis] == 1]
            of_bias = of_logits.sum(broadcast, keepdims=True)
        return of_query + product("bhqk,bkhf->bqhf", of_products, key), (of_key, of_value, of_bias)

    zeros = jnp.zeros(by.query.shape, jnp.float32)
    of_query, (of_key, of_value, of_bias) = jax.lax.scan(
        step, zeros, _split(key, value, mask, bias, chunk)
    )
    of_key, of_value = (_joined(a, 1, key.shape[1]) for a in (of_key, of_value))
    return of_query, of_key, of_value, jax.tree.map(lambda a: _joined(a, 3, key.shape[1]), of_bias)


def _split(key, value, mask, bias, chunk):
    """Return each with its chunks of keys along a new first axis, the last chunk filled up."""

    def split(a, axis):
        return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, chunk, *a.shape[axis + 1 :]), axis, 0)

    key, value, mask, bias = pad_keys(key, value, mask, bias, chunk)
    of_keys_and_bias = jax.tree.map(lambda a: split(a, 3), (of_keys(mask), bias))
    return split(key, 1), split(value, 1), *of_keys_and_bias


def _joined(chunks, axis, length):
    chunks = jnp.moveaxis(chunks, 0, axis)
    joined = chunks.reshape(*chunks.shape[:axis], -1, *chunks.shape[axis + 2 :])
    return jax.lax.slice_in_dim(joined, 0, length, axis=axis)


def like(gradient: Any, primal: Any) -> Any:
    """Return gradients in the types of their variables."""
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradient, primal)


def chunk_length(query_shape: tuple[int, ...], keys: int) -> int:
    """Return the length of the fewest equal chunks whose logits fit `CHUNK_BYTES`, at least 128."""
    batch, queries, heads, _ = query_shape
    longest = max(CHUNK_BYTES // (4 * batch * heads * queries), LEAST_CHUNK)
    return math.ceil(keys / math.ceil(keys / longest))


def chunked_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: Mask = None,
    bias: Bias = None,
    scale: float | None = None,
    *,
    chunk: int,
    forward_mode: bool = False,
) -> Queries:
    """Compute `attention` with the logits of `chunk` keys at once.

    A backward pass keeps the arguments, the output and two numbers per query and head. A second
    derivative keeps more.

    Args:
        forward_mode: `jax.jvp` can be taken. A backward pass then keeps as many outputs as there
            are chunks.
    """
    form = _differentiable if forward_mode else _reverse_mode
    return form(chunk, scaled(query, scale), key, value, mask, bias)


def _differentiable(chunk, query, key, value, mask, bias):
    return absorb(start(query), query, key, value, mask, bias, chunk).output.astype(value.dtype)


def _forward(chunk, query, key, value, mask, bias):
    softmax = absorb(start(query), query, key, value, mask, bias, chunk)
    output = softmax.output.astype(value.dtype)
    return output, (query, key, value, mask, bias, output, softmax.highest, softmax.total)


def _backward(chunk, residuals, gradient):
    query, key, value, mask, bias, *saved = residuals
    by = query_residuals(query, *saved, gradient)
    of_query, of_key, of_value, of_bias = gradients(by, key, value, mask, bias, chunk)
    return *like((of_query, of_key, of_value), (query, key, value)), None, like(of_bias, bias)


_reverse_mode = jax.custom_vjp(_differentiable, nondiff_argnums=(0,))
_reverse_mode.defvjp(_forward, _backward)
