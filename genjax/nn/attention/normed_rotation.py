"""RMS norms of queries and keys with rotary positions, in one pass over memory on TPUs.

XLA takes four passes. It brings tokens `[batch length heads·features]` into another order, where a
head has a dimension of its own for its norm and for pairs of its features. Here a head is some
registers, and the other feature of a pair is one place away in a register.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Num

from genjax.nn.attention.dispatch import current_platform, forward_mode
from genjax.nn.attention.short import LANES
from genjax.nn.sharding import BATCH_AXES, CONTEXT, TENSOR, free_axes, split_axes

Tokens = Float[Array, "batch length heads_features"]
Table = Float[Array, "length features"]
ROWS, HEADS = 256, 8  # at most, that a kernel takes at once


class Sizes(NamedTuple):
    """Tokens and heads that a kernel takes at once, the norm's epsilon, whether to interpret."""

    rows: int
    heads: int
    epsilon: float
    interpret: bool


def takes_kernel(x: Float[Array, "batch length heads features"]) -> bool:
    """Return whether `normed_rotation` is for these queries or keys where they are traced.

    Kernels have no forward-mode derivative, and XLA cannot split them without a mesh. The length
    must divide into whole blocks on each device of `context`. Otherwise each device would process
    all tokens, one at a time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    _, length, _, features = x.shape
    return (
        current_platform() == "tpu"
        and x.dtype == jnp.bfloat16
        and features == LANES
        and length % (ROWS * free_axes(mesh).get(CONTEXT, 1)) == 0
        and not forward_mode.value
        and (not mesh.empty or jax.device_count() == 1)
    )


def normed_rotation(
    x: Float[Array, "batch length heads features"],
    scale: Float[Array, " features"],
    rotations: Num[Array, "length pairs 2"],
    epsilon: float,
    *,
    interpret: bool = False,
) -> Float[Array, "batch length heads features"]:
    """Return `rotary.rotate` of the RMS norm of queries or keys, in float32 and rounded once.

    Args:
        scale: of each feature, by the norm.
        interpret: run anywhere, and slowly.
    """
    cos, sin = jnp.moveaxis(jnp.repeat(rotations, 2, axis=1), 2, 0)
    sign = jnp.tile(jnp.array([-1.0, 1.0]), scale.size // 2)
    of_pairs = scale.reshape(-1, 2)[:, ::-1].reshape(-1)  # of the other feature of the pair
    tables = scale * cos, sign * of_pairs * sin

    def on_device(x, own, other):
        rows, heads = math.gcd(x.shape[1], ROWS), math.gcd(x.shape[2], HEADS)
        sizes = Sizes(rows, heads, epsilon, interpret)
        return _turned(sizes, x.reshape(*x.shape[:2], -1), own, other).reshape(x.shape)

    mesh = jax.sharding.get_abstract_mesh()
    if not free_axes(mesh):
        return on_device(x, *tables)
    names = zip((BATCH_AXES, (CONTEXT,), (TENSOR,)), x.shape, strict=False)
    tokens = PartitionSpec(*(split_axes(mesh, axes, size) or None for axes, size in names))
    of_tables = PartitionSpec(tokens[1])
    specs = dict(in_specs=(tokens, of_tables, of_tables), out_specs=tokens)
    axes = set(free_axes(mesh))
    return jax.shard_map(on_device, mesh=mesh, **specs, axis_names=axes, check_vma=False)(
        x, *tables
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _turned(sizes: Sizes, x: Tokens, own: Table, other: Table) -> Tokens:
    return _call(_forward_kernel, sizes, own.shape[1], (x,), (own, other), (x,))[0]


def _forward(sizes, *inputs):
    return _turned(sizes, *inputs), inputs


def _backward(sizes, inputs, gradient):
    x, own, other = inputs
    features = own.shape[1]
    return _call(_backward_kernel, sizes, features, (x, gradient), (own, other), inputs)


_turned.defvjp(_forward, _backward)


def _call(
    kernel: Callable, sizes: Sizes, features: int, tokens: tuple, tables: tuple, outputs: tuple
) -> tuple[Array, ...]:
    """Run a kernel for each block of tokens, example and group of heads, the last two in order."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, length, width = tokens[0].shape
    group = sizes.heads * features
    of_tokens = pl.BlockSpec((None, sizes.rows, group), lambda row, example, h: (example, row, h))
    of_tables = pl.BlockSpec((sizes.rows, features), lambda row, example, h: (row, 0))
    spec = lambda a: of_tokens if a.ndim == 3 else of_tables
    call = pl.pallas_call(
        functools.partial(kernel, sizes.epsilon),
        grid=(length // sizes.rows, batch, width // group),
        in_specs=list(map(spec, (*tokens, *tables))),
        out_specs=list(map(spec, outputs)),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        interpret=sizes.interpret,
    )
    return tuple(call(*tokens, *tables))


def _swapped(x: Array) -> Array:
    """Return the other feature of each pair."""
    from jax.experimental.pallas import tpu as pltpu

    features = x.shape[1]
    even = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) % 2 == 0
    return jnp.where(even, pltpu.roll(x, features - 1, 1), pltpu.roll(x, 1, 1))


def _normed(epsilon: float, x: Array) -> tuple[Array, Array]:
    factor = jax.lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + epsilon)
    return factor * x, factor


def _heads(features: int, *refs) -> list[tuple[Array, ...]]:
    """Return the part of each head of some arrays, in float32."""
    starts = range(0, refs[0].shape[1], features)
    return [tuple(a[:, i : i + features].astype(jnp.float32) for a in refs) for i in starts]


def _forward_kernel(epsilon, x, own, other, output):
    features = own.shape[1]
    for i, (head,) in enumerate(_heads(features, x)):
        head, _ = _normed(epsilon, head)
        turned = own[...] * head + other[...] * _swapped(head)
        output[:, i * features : (i + 1) * features] = turned.astype(output.dtype)


def _backward_kernel(epsilon, x, gradient, own, other, of_x, of_own, of_other):
    from jax.experimental import pallas as pl

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        of_own[...] = jnp.zeros_like(of_own)
        of_other[...] = jnp.zeros_like(of_other)

    features = own.shape[1]
    for i, (head, of_head) in enumerate(_heads(features, x, gradient)):
        head, factor = _normed(epsilon, head)
        of_own[...] += of_head * head
        of_other[...] += of_head * _swapped(head)
        of_head = own[...] * of_head + _swapped(other[...] * of_head)
        of_head = factor * (of_head - head * (head * of_head).mean(axis=1, keepdims=True))
        of_x[:, i * features : (i + 1) * features] = of_head.astype(of_x.dtype)
