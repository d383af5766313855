"""Attention on TPUs where all keys fit into the memory on the chip, heads in tokens' own order.

A projection gives tokens `[batch length heads·features]`, and a register holds 128 of these
features, so heads of 72 begin and end within registers. Kernels that take `[batch heads length
features]` have XLA transpose queries, keys, values and their gradients, and fill 72 features up to
128. Here a product takes the whole registers around a head, with zeros in place of the other heads.
That costs nothing: a matrix unit multiplies 128 features at a time anyway.

The backward pass computes the weights again from queries and keys, so the forward pass stores none.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from genjax.nn.attention.chunked import Keys, Queries

LANES = 128  # features in a register of a TPU
LEAST_MEMORY = 16 * 2**20  # bytes on a chip for kernels: those of TPU v4, the smallest
BLOCKS = (512, 256, 128)  # queries that a kernel takes at once

Tokens = Float[Array, "batch _ heads_features"]  # queries, or keys


def memory_on_chip() -> int:
    """Return the bytes for kernels on each chip that the program being traced is for."""
    from jax.experimental.pallas import tpu as pltpu

    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # JAX does not know this TPU
        return LEAST_MEMORY


def query_block(
    queries: int, keys: int, heads: int, features: int, memory: int = LEAST_MEMORY
) -> int | None:
    """Return how many queries `short_attention` takes at once, in bfloat16 and with its gradient.

    Args:
        memory: bytes on the chip. Three quarters are for what is counted here, the rest for
            registers.

    Returns:
        A divisor of `queries`, or None if no block fits beside all keys.
    """
    group = _group(heads * features, features)
    for block in (min(queries, BLOCKS[0]), *BLOCKS, queries):
        if queries % block == 0 and _kernel_bytes(block, keys, group) <= memory * 3 // 4:
            return block
    return None


def _kernel_bytes(block: int, keys: int, group: int) -> int:
    """Return the bytes on the chip for the gradient of some queries and heads.

    Args:
        group: features of the heads that a kernel takes at once.
    """
    lanes = math.ceil(group / LANES) * LANES
    # Buffers of queries, keys, values, and the gradients of these and of the output. They are
    # bfloat16, and one buffer is copied while another is in use.
    buffers = 2 * 2 * (3 * block + 4 * keys) * lanes
    sums = 2 * 4 * keys * lanes  # of the gradients by keys and values
    logits = 3 * 4 * block * keys
    return buffers + sums + logits


def short_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    scale: float | None = None,
    *,
    block: int | None = None,
    interpret: bool = False,
) -> Queries:
    """Return `attention` without mask and bias; it has one derivative, in reverse.

    Args:
        block: `query_block`; all queries if None.
        interpret: run anywhere, and slowly.
    """
    heads, features = query.shape[2:]
    scale = features**-0.5 if scale is None else scale
    joined = (a.reshape(*a.shape[:2], heads * features) for a in (query, key, value))
    sizes = Sizes(features, block or query.shape[1], interpret)
    return _attention(sizes, scale, *joined).reshape(query.shape)


class Sizes(NamedTuple):
    """Features of a head, queries that a kernel takes at once, and whether to run it anywhere."""

    features: int
    block: int
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(sizes: Sizes, scale: float, query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    kernel = functools.partial(_forward_kernel, sizes.features, scale)
    return _call(kernel, sizes, {"query": query, "key": key, "value": value}, ["query"])[0]


def _forward(sizes, scale, *inputs):
    # A policy of rematerialisation finds the output by its name. JAX rounds what a policy saves to
    # its own type again, one more pass over it after a kernel. JAX does not round integers.
    output = _attention(sizes, scale, *inputs)
    bits = jax.lax.bitcast_convert_type(output, f"uint{8 * output.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, "attention"), output.dtype), inputs


def _backward(sizes, scale, inputs, gradient):
    kernel = functools.partial(_backward_kernel, sizes.features, scale)
    inputs = dict(zip(("query", "key", "value"), inputs, strict=True))
    return _call(kernel, sizes, inputs | {"gradient": gradient}, list(inputs), sums=True)


_attention.defvjp(_forward, _backward)


def _group(width: int, features: int) -> int:
    """Return how many features the fewest heads have that fill whole registers, or all heads."""
    group = math.lcm(features, LANES)
    return width if width % group else group


def _call(
    kernel: Callable,
    sizes: Sizes,
    inputs: dict[str, Tokens],
    outputs: list[str],
    sums: bool = False,
) -> tuple[Tokens, ...]:
    """Run a kernel for every example, group of heads and block of queries.

    Args:
        outputs: the inputs whose shapes results have.
        sums: whether the kernel has two float32 arrays of the keys' shape to sum over blocks.
    """
    # Pallas takes a second to load, which programs for other devices need not wait for.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, queries, width = inputs["query"].shape
    keys, group = inputs["key"].shape[1], _group(width, sizes.features)
    of_queries = pl.BlockSpec((None, sizes.block, group), lambda e, group, block: (e, block, group))
    of_keys = pl.BlockSpec((None, keys, group), lambda e, group, block: (e, 0, group))
    spec = lambda name: of_keys if name in ("key", "value") else of_queries
    call = pl.pallas_call(
        kernel,
        grid=(batch, width // group, queries // sizes.block),
        in_specs=list(map(spec, inputs)),
        out_specs=list(map(spec, outputs)),
        out_shape=[jax.ShapeDtypeStruct(inputs[n].shape, inputs[n].dtype) for n in outputs],
        scratch_shapes=[pltpu.VMEM((keys, group), jnp.float32)] * (2 if sums else 0),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=max(LEAST_MEMORY, _kernel_bytes(sizes.block, keys, group) * 4 // 3),
        ),
        interpret=sizes.interpret,
    )
    return tuple(call(*inputs.values()))


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


def _weights(
    query: Array, key: Array, scale: float
) -> tuple[Float[Array, "queries keys"], Float[Array, "queries 1"]]:
    """Return exp(logits) but for a factor of each query, and one divided by its sum over keys."""
    logits = scale * math.log2(math.e) * _product(query, key, 1, 1)
    weights = jnp.exp2(logits - logits.max(axis=1, keepdims=True))
    return weights, 1 / weights.sum(axis=1, keepdims=True)


def _store(ref, lanes, own, result):
    ref[:, lanes] = jnp.where(own, result.astype(ref.dtype), ref[:, lanes])


def _forward_kernel(features, scale, query, key, value, output):
    block, width = query.shape
    # The compiler runs products beside the weights of other heads, or else of other queries.
    rows = 128 if width == features and block % 128 == 0 else block
    for start in range(0, block, rows):
        part = slice(start, start + rows)
        for lanes, own in _heads(width, features):
            own_query = jnp.where(own, query[part, lanes], 0)
            weights, factor = _weights(own_query, key[:, lanes], scale)
            product = _product(weights.astype(value.dtype), value[:, lanes], 1, 0)
            _store(output.at[part], lanes, own, factor * product)


def _backward_kernel(
    features, scale, query, key, value, gradient, of_query, of_key, of_value, key_sum, value_sum
):
    from jax.experimental import pallas as pl

    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    for lanes, own in _heads(query.shape[1], features):
        own_query, own_gradient = (jnp.where(own, a[:, lanes], 0) for a in (query, gradient))
        weights, factor = _weights(own_query, key[:, lanes], scale)
        weights = factor * weights
        of_weights = _product(own_gradient, value[:, lanes], 1, 1)
        inner = (weights * of_weights).sum(axis=1, keepdims=True)
        of_logits = (weights * (of_weights - inner)).astype(key.dtype)
        _store(of_query, lanes, own, scale * _product(of_logits, key[:, lanes], 1, 0))
        key_sum[:, lanes] += scale * _product(of_logits, own_query, 0, 0)
        value_sum[:, lanes] += _product(weights.astype(value.dtype), own_gradient, 0, 0)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        of_key[...] = key_sum[...].astype(of_key.dtype)
        of_value[...] = value_sum[...].astype(of_value.dtype)
