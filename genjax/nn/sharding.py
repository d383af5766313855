"""Places of arrays on a mesh of devices: its axes, and hints that cost nothing without a mesh.

Batches are split over `data` and `fsdp`, and sequences of tokens over `context`. The features
within a layer are split over `tensor`: heads of attention and the inner features of feed-forward
layers (Shoeybi et al. 2019, "Megatron-LM").
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

BATCH_AXES, CONTEXT, TENSOR = ("data", "fsdp"), "context", "tensor"


def free_axes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """Return the axes, with sizes, that no `jax.shard_map` around the caller has split yet."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in types if kind != AxisType.Manual}


def split_axes(
    mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], length: int
) -> tuple[str, ...]:
    """Return those of the mesh's free axes `names` that together divide a dimension, in order."""
    axes, parts = [], 1
    for name in names:
        size = free_axes(mesh).get(name, 1)
        if size > 1 and length % (parts * size) == 0:
            axes.append(name)
            parts *= size
    return tuple(axes)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Ask that dimension i of `x` be split over the mesh axes `axes[i]`, and no other dimension.

    Axes that the current mesh (`jax.set_mesh`) lacks, or that do not divide the dimension, are
    ignored. Without a mesh `x` is returned as it is. So networks may name axes freely.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    named = [names if isinstance(names, tuple) else (names,) for names in axes]
    spec = [split_axes(mesh, *each) or None for each in zip(named, x.shape, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_tokens(x: jax.Array) -> jax.Array:
    """Split examples of `[batch length features]` over `data` and `fsdp`, tokens over `context`."""
    return constrain(x, BATCH_AXES, CONTEXT)


def one_device() -> bool:
    """Return whether the current mesh (`jax.set_mesh`) has one device, or there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def context_size() -> int:
    """Return over how many devices of the current mesh sequences are split."""
    return free_axes(jax.sharding.get_abstract_mesh()).get(CONTEXT, 1)


def join(parts: Sequence[jax.Array]) -> jax.Array:
    """Return sequences `[batch length_i …]` as one, `[batch Σ length_i …]`; see `separate`.

    The sequences follow one another. If each is split over `context`, their parts on a device
    follow one another there, and nothing is sent. Attention does not see the order of tokens, if
    positions and masks are joined in the same way.
    """
    size = _common_size([a.shape[1] for a in parts])
    split = [a.reshape(a.shape[0], size, a.shape[1] // size, *a.shape[2:]) for a in parts]
    joined = jnp.concatenate(split, axis=2)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])


def separate(joined: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
    """Return the sequences of these lengths that `join` has made one."""
    size = _common_size(lengths)
    split = joined.reshape(joined.shape[0], size, -1, *joined.shape[2:])
    ends = [sum(lengths[: i + 1]) // size for i in range(len(lengths) - 1)]
    parts = jnp.split(split, ends, axis=2)
    return [a.reshape(a.shape[0], -1, *a.shape[3:]) for a in parts]


def _common_size(lengths: Sequence[int]) -> int:
    size = context_size()
    return 1 if any(length % size for length in lengths) else size


def over_parts(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return `product`, whose backward pass calls `gathered` again if there is something to gather.

    So the parts of a matrix are kept in between, and not all of it on every device.
    """
    return jax.checkpoint(product, prevent_cse=False) if _in_parts() else product


def gathered(matrix: jax.Array) -> jax.Array:
    """Return a layer's matrix whole on every device, if the devices of `fsdp` hold parts of it.

    It is sent in its own type, so in bfloat16 if it is rounded before. Its gradient stays in parts
    (Rajbhandari et al. 2020, "ZeRO", stage 3).
    """
    # Otherwise XLA's TPU compiler cuts the product into one for each device. These take the parts
    # of the matrix in turn, and move twice as many bytes to and from memory.
    return _whole(matrix) if _in_parts() else matrix


def _in_parts() -> bool:
    axes = free_axes(jax.sharding.get_abstract_mesh())
    return axes.get("fsdp", 1) > 1 and axes.get(TENSOR, 1) == 1


@jax.custom_jvp
def _whole(matrix: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(matrix, PartitionSpec())


# A tangent is not gathered, so that its transpose, the gradient, is not either.
_whole.defjvp(lambda primals, tangents: (_whole(*primals), *tangents))
