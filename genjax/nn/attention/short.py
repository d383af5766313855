"""Attention on TPUs where a head's logits fit into the memory on the chip, with heads as projections leave them.

A projection gives tokens `[batch length heads·features]`, and a register holds 128 of these features, so
heads of 72 begin and end within registers. Kernels that take `[batch heads length features]` have XLA
transpose queries, keys, values and their gradients, and fill 72 features up to 128. Here a product takes
the whole registers around a head, with zeros in place of the other heads. That costs nothing: a matrix unit
multiplies 128 features at a time anyway.

The backward pass computes the weights again from queries and keys, so the forward pass stores none.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from genjax.nn.attention.chunked import Keys, Queries

LANES = 128  # features in a register of a TPU
# Of the memory on a chip, the share of one kernel that every TPU grants (16 MiB) without room for registers.
SHORT_BYTES = 12 * 2**20

Tokens = Float[Array, "batch _ heads_features"]  # queries, or keys


def fits_short_attention(queries: int, keys: int, heads: int, features: int) -> bool:
    """Return whether `short_attention` and its gradient in bfloat16 fit into the memory on a chip."""
    rows = (
        3 * queries + 4 * keys
    )  # of queries, keys, values, and the gradients of these and of the output
    lanes = math.ceil(_group(heads * features, features) / LANES) * LANES
    buffers = 2 * 2 * rows * lanes  # of bfloat16, one copied while another is in use
    logits = 3 * 4 * queries * keys
    return buffers + logits <= SHORT_BYTES


def short_attention(
    query: Queries, key: Keys, value: Keys, scale: float | None = None, *, interpret: bool = False
) -> Queries:
    """Return `attention` without mask and bias; it has one derivative, in reverse.

    Args:
        interpret: run anywhere, and slowly.
    """
    heads, features = query.shape[2:]
    scale = features**-0.5 if scale is None else scale
    joined = (a.reshape(*a.shape[:2], heads * features) for a in (query, key, value))
    return _attention(features, scale, interpret, *joined).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
    features: int, scale: float, interpret: bool, query: Tokens, key: Tokens, value: Tokens
) -> Tokens:
    kernel = functools.partial(_forward_kernel, features, scale)
    return _call(kernel, features, interpret, (query, key, value), (query,))[0]


def _forward(features, scale, interpret, *inputs):
    # A policy of rematerialisation finds the output by its name. JAX rounds what a policy saves to its own type again, which
    # is one more pass over it after a kernel. It does not round integers.
    output = _attention(features, scale, interpret, *inputs)
    bits = jax.lax.bitcast_convert_type(output, f"uint{8 * output.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, "attention"), output.dtype), inputs


def _backward(features, scale, interpret, inputs, gradient):
    kernel = functools.partial(_backward_kernel, features, scale)
    return _call(kernel, features, interpret, (*inputs, gradient), inputs)


_attention.defvjp(_forward, _backward)


def _group(width: int, features: int) -> int:
    """Return how many features the fewest heads have that fill whole registers, or all heads."""
    group = math.lcm(features, LANES)
    return width if width % group else group


def _call(
    kernel: Callable,
    features: int,
    interpret: bool,
    inputs: Sequence[Tokens],
    outputs: Sequence[Tokens],
) -> tuple[Tokens, ...]:
    """Run a kernel for every example and group of heads; its results have the shapes of `outputs`."""
    # Pallas takes a second to load, which programs for other devices need not wait for.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, _, width = inputs[0].shape
    group = _group(width, features)
    block = lambda a: pl.BlockSpec(
        (None, a.shape[1], group), lambda example, group: (example, 0, group)
    )
    call = pl.pallas_call(
        kernel,
        grid=(batch, width // group),
        in_specs=list(map(block, inputs)),
        out_specs=list(map(block, outputs)),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
    )
    return tuple(call(*inputs))


def _heads(width: int, features: int) -> Iterator[tuple[slice, Bool[Array, "1 lanes"]]]:
    """Yield for each head the registers that hold it, and which of their features are its own."""
    for first in range(0, width, features):
        start = first // LANES * LANES
        stop = min(math.ceil((first + features) / LANES) * LANES, width)
        feature = start + jax.lax.broadcasted_iota(jnp.int32, (1, stop - start), 1)
        yield slice(start, stop), (first <= feature) & (feature < first + features)


def _product(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    """Sum over an axis of each of two matrices, in float32."""
    dimensions = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _weights(query: Array, key: Array, scale: float) -> Float[Array, "queries keys"]:
    logits = scale * _product(query, key, 1, 1)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _store(ref, lanes, own, result):
    ref[:, lanes] = jnp.where(own, result.astype(ref.dtype), ref[:, lanes])


def _forward_kernel(features, scale, query, key, value, output):
    for lanes, own in _heads(query.shape[1], features):
        weights = _weights(jnp.where(own, query[:, lanes], 0), key[:, lanes], scale)
        _store(output, lanes, own, _product(weights.astype(value.dtype), value[:, lanes], 1, 0))


def _backward_kernel(features, scale, query, key, value, gradient, of_query, of_key, of_value):
    for lanes, own in _heads(query.shape[1], features):
        weights = _weights(jnp.where(own, query[:, lanes], 0), key[:, lanes], scale)
        of_weights = _product(jnp.where(own, gradient[:, lanes], 0), value[:, lanes], 1, 1)
        inner = (weights * of_weights).sum(axis=1, keepdims=True)
        of_logits = (scale * weights * (of_weights - inner)).astype(key.dtype)
        _store(of_query, lanes, own, _product(of_logits, key[:, lanes], 1, 0))
        _store(of_key, lanes, own, _product(of_logits, query[:, lanes], 0, 0))
        _store(
            of_value, lanes, own, _product(weights.astype(value.dtype), gradient[:, lanes], 0, 0)
        )
