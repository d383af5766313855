"""Sharding hints that cost nothing where there is no mesh."""

import jax
from jax.sharding import PartitionSpec


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Asks that dimension i of `x` be sharded over the mesh axis `axes[i]`.

    Axes that the current mesh (`jax.set_mesh`) lacks are ignored, and without a mesh `x` is
    returned as it is, so networks may name axes freely.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def present(axis):
        if isinstance(axis, tuple):
            return tuple(a for a in axis if a in mesh.axis_names) or None
        return axis if axis in mesh.axis_names else None

    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(present, axes)))
