"""Attention on a mesh of devices that splits long sequences over its axis "context".

`ring_attention` and `all_to_all_attention` are what each device runs under `jax.shard_map`, on its
equal part of the sequence; `attention_over_mesh` makes one of them a function of whole arrays.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from genjax.nn.attention.chunked import (
    Bias,
    Keys,
    Mask,
    Queries,
    absorb,
    chunk_length,
    gradients,
    like,
    pad_keys,
    query_residuals,
    scaled,
    start,
)
from genjax.nn.attention.segments import Segments, of_keys, with_queries
from genjax.nn.sharding import BATCH_AXES, CONTEXT, TENSOR, free_axes, split_axes

RowsOfMask = Bool[Array, "#batch #heads #queries all_keys"] | Segments | None
RowsOfBias = Float[Array, "#batch #heads #queries all_keys"] | None


def ring_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: RowsOfMask = None,
    bias: RowsOfBias = None,
    scale: float | None = None,
    *,
    forward_mode: bool = False,
) -> Queries:
    """Return `attention` of this device's queries to all keys, whose blocks go round a ring.

    Liu et al. 2023, "Ring attention with blockwise transformers for near-infinite context".

    A block is sent on while its logits are computed, some keys at a time as in `chunked_attention`.
    For a backward pass each device keeps its own part alone, and blocks go round again with their
    gradients, which are float32.

    Args:
        mask, bias: the rows of this device's queries, and all columns.
        forward_mode: `jax.jvp` can be taken. A backward pass then keeps every block.
    """
    form = _differentiable_ring if forward_mode else _reverse_mode_ring
    return form(scaled(query, scale), key, value, mask, bias)


def _send(block):
    size = jax.lax.axis_size(CONTEXT)
    return jax.lax.ppermute(block, CONTEXT, [(i, (i + 1) % size) for i in range(size)])


def _first_column(step, length):
    """Return the first column of the block that this device holds after so many were sent."""
    return (jax.lax.axis_index(CONTEXT) - step) % jax.lax.axis_size(CONTEXT) * length


def _columns(mask, bias, first, length):
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, first, length, axis=3)
    of_block, bias = jax.tree.map(cut, (of_keys(mask), bias))
    return with_queries(of_block, mask), bias


def _ring_softmax(query, key, value, mask, bias):
    length = key.shape[1]
    last = jax.lax.axis_size(CONTEXT) - 1

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def look(softmax, block, step):
        columns = _columns(mask, bias, _first_column(step, length), length)
        return absorb(softmax, query, *block, *columns, chunk_length(query.shape, length))

    def turn(carry, step):
        softmax, block = carry
        following = _send(block)  # needs nothing computed here, so both go on at once
        return (look(softmax, block, step), following), None

    carry = start(query), (key, value)
    (softmax, block), _ = jax.lax.scan(turn, carry, jnp.arange(last))
    return look(softmax, block, last)


def _differentiable_ring(query, key, value, mask, bias):
    return _ring_softmax(query, key, value, mask, bias).output.astype(value.dtype)


def _ring_forward(query, key, value, mask, bias):
    softmax = _ring_softmax(query, key, value, mask, bias)
    output = softmax.output.astype(value.dtype)
    return output, (query, key, value, mask, bias, output, softmax.highest, softmax.total)


def _ring_backward(residuals, gradient):
    query, key, value, mask, bias, *saved = residuals
    by, length = query_residuals(query, *saved, gradient), key.shape[1]
    last = jax.lax.axis_size(CONTEXT) - 1

    def look(of_rows, of_block, block, step):
        """Return gradients with this block's and these rows' parts added, the block's sent on."""
        first = _first_column(step, length)
        columns = _columns(mask, bias, first, length)
        of_query, *more, of_columns = gradients(
            by, *block, *columns, chunk_length(query.shape, length)
        )
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=3)
        of_rows = of_rows[0] + of_query, jax.tree.map(put, of_rows[1], of_columns)
        return of_rows, _send(jax.tree.map(jnp.add, of_block, tuple(more)))

    def turn(carry, step):
        of_rows, of_block, block = carry
        following = _send(block)
        return (*look(of_rows, of_block, block, step), following), None

    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)
    block = key, value
    carry = zeros((query, bias)), zeros(block), block
    (of_rows, of_block, block), _ = jax.lax.scan(turn, carry, jnp.arange(last))
    (of_query, of_bias), of_block = look(of_rows, of_block, block, last)
    return *like((of_query, *of_block), (query, key, value)), None, like(of_bias, bias)


_reverse_mode_ring = jax.custom_vjp(_differentiable_ring)
_reverse_mode_ring.defvjp(_ring_forward, _ring_backward)


def all_to_all_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: RowsOfMask = None,
    bias: RowsOfBias = None,
    scale: float | None = None,
    *,
    attention: Callable[..., Queries],
) -> Queries:
    """Exchange parts of the sequence for parts of the heads, attend, and exchange back.

    Jacobs et al. 2023, "DeepSpeed Ulysses".

    Args:
        mask, bias: the rows of this device's queries, and all columns.
        attention: `(query, key, value, mask, bias, scale)`, of some heads and all of the sequence.

    Raises:
        ValueError: the axis "context" does not divide the number of heads.
    """
    size, heads = jax.lax.axis_size(CONTEXT), query.shape[2]
    if heads % size:
        raise ValueError(
            f"{heads} heads cannot be split over {size} devices; ring_attention keeps them together"
        )
    exchange = functools.partial(jax.lax.all_to_all, axis_name=CONTEXT, tiled=True)

    def rows_to_heads(a):
        if a.shape[1] == 1:
            return a if a.shape[2] == 1 else jax.lax.all_gather(a, CONTEXT, axis=2, tiled=True)
        if a.shape[2] == 1:
            share = heads // size
            return jax.lax.dynamic_slice_in_dim(
                a, jax.lax.axis_index(CONTEXT) * share, share, axis=1
            )
        return exchange(a, split_axis=1, concat_axis=2)

    parts = (exchange(a, split_axis=2, concat_axis=1) for a in (query, key, value))
    output = attention(*parts, *jax.tree.map(rows_to_heads, (mask, bias)), scale)
    return exchange(output, split_axis=1, concat_axis=2)


def _padded(
    query: Queries, key: Keys, value: Keys, mask: Mask, bias: Bias, multiple: int
) -> tuple[
    Float[Array, "batch padded_queries heads features"],
    Float[Array, "batch padded_keys heads features"],
    Float[Array, "batch padded_keys heads features"],
    Bool[Array, "#batch #heads #padded_queries padded_keys"] | Segments | None,
    Float[Array, "#batch #heads #padded_queries padded_keys"] | None,
]:
    """Add queries, and hidden keys, up to multiples of a number."""
    key, value, mask, bias = pad_keys(key, value, mask, bias, multiple)
    excess = -query.shape[1] % multiple
    query = jnp.pad(query, ((0, 0), (0, excess), (0, 0), (0, 0)))
    more_rows = lambda a: (
        a if a.shape[2] == 1 else jnp.pad(a, ((0, 0), (0, 0), (0, excess), (0, 0)))
    )
    return query, key, value, *jax.tree.map(more_rows, (mask, bias))


def attention_over_mesh(
    form: Callable[..., Queries],
    query: Queries,
    key: Keys,
    value: Keys,
    mask: Mask = None,
    bias: Bias = None,
    scale: float | None = None,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    split_keys: bool = True,
) -> Queries:
    """Apply `form` to every device's part of whole arrays, in or outside `jax.jit`.

    Sequences are split over the mesh's axis "context", batches over "data" and "fsdp", and heads
    over "tensor". Axes that the mesh lacks, or that do not divide, are left out.

        attention_over_mesh(ring_attention, query, key, value)
        form = functools.partial(all_to_all_attention, attention=attention)
        attention_over_mesh(form, query, key, value)

    Args:
        form: `(query, key, value, mask, bias, scale)`, given the rows of mask and bias for its
            queries and all columns.
        mesh: the one in use (`jax.set_mesh`) if None.
        split_keys: each device gets a part of keys and values, and lengths that "context" does not
            divide are filled up with hidden keys. Otherwise each device gets all keys and values.

    Raises:
        ValueError: keys are to be split and the mesh has no axis "context".
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    free = free_axes(mesh)
    if split_keys and CONTEXT not in free:
        raise ValueError(f'sequences are split over an axis "context"; this mesh has {tuple(free)}')
    queries = query.shape[1]
    if split_keys:
        query, key, value, mask, bias = _padded(query, key, value, mask, bias, free[CONTEXT])

    def spec(shape, *names):
        axes = zip(names, shape, strict=False)
        return PartitionSpec(*(split_axes(mesh, names, length) or None for names, length in axes))

    of_rows = lambda a: spec(a.shape, BATCH_AXES, (TENSOR,), (CONTEXT,))
    of_queries = spec(query.shape, BATCH_AXES, (CONTEXT,), (TENSOR,))
    of_keys = spec(key.shape, BATCH_AXES, (CONTEXT,) if split_keys else (), (TENSOR,))
    mapped = jax.shard_map(
        lambda *parts: form(*parts, scale),
        mesh=mesh,
        in_specs=(of_queries, of_keys, of_keys, *jax.tree.map(of_rows, (mask, bias))),
        out_specs=of_queries,
        axis_names=set(free),
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    return mapped(query, key, value, mask, bias)[:, :queries]
