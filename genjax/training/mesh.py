"""Meshes of devices, and where batches and states live on them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(axes: Mapping[str, int], batch_size: int) -> Mesh:
    """A mesh of named axes over all devices; a size of −1 (one at most) takes all devices left over.

    Args:
        axes: name to size, for example `{"data": -1}`.
        batch_size: examples per step over all devices, to be split over the axis `data`.

    Raises:
        ValueError: more devices asked for than there are, a remainder, or a batch that does not divide.
    """
    axes, num_devices = dict(axes), jax.device_count()
    fixed = math.prod(size for size in axes.values() if size != -1)
    if list(axes.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in axes.values()):
        raise ValueError(f"mesh sizes must be positive, with one −1 at most; got {axes}")
    if -1 in axes.values():
        axes = {name: num_devices // fixed if size == -1 else size for name, size in axes.items()}
    if math.prod(axes.values()) != num_devices:
        raise ValueError(
            f"the mesh {axes} needs {max(fixed, math.prod(axes.values()))} devices and this machine has "
            f"{num_devices}; set config.mesh so that the product of its sizes is {num_devices}, or one size to −1"
        )
    data = axes.get("data", 1)
    if batch_size % data:
        raise ValueError(
            f"a batch of {batch_size} does not divide over {data} devices on the mesh axis 'data'; "
            f"choose config.batch_size among the multiples of {data}"
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over the axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data" if "data" in mesh.axis_names else None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array | np.ndarray]:
    """This process' examples as what a function jitted with `batch_sharding` takes for the global batch."""
    if jax.process_count() == 1:
        return dict(batch)  # the call itself places it, in a fraction of the time
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, a) for name, a in batch.items()}


def abstract_state(task: Any, key: jax.Array, mesh: Mesh) -> Any:
    """Shapes, types and shardings of `task.init(key)`, computed without allocating anything."""
    shapes = jax.eval_shape(task.init, key)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), shapes)
