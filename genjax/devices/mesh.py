"""Meshes of devices, and where batches and states live on them.

A mesh is a product of up to four axes:

- `data` splits the batch. Every device holds the whole state.
- `fsdp`, fully sharded data parallelism, splits the batch and every large array of the state. A
  layer's parameters are gathered as it runs (Rajbhandari et al. 2020, "ZeRO", stage 3).
- `tensor` splits the heads and inner features of every transformer layer (Shoeybi et al. 2019,
  "Megatron-LM", section 3).
- `context` splits sequences (`genjax.nn.attention.context_parallel`) and no state.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from genjax.nn.sharding import BATCH_AXES, CONTEXT, TENSOR

AXES = (*BATCH_AXES, TENSOR, CONTEXT)
# Here networks stack the parameters of scanned layers, on dimension 0.
SCANNED = re.compile(r"(\b|_)blocks\b")
# `tensor` splits these layers by their outputs, of which the next layers need a device's own alone.
COLUMNS = re.compile(
    r"(\b|_)(query_key_value|query|key|value|mlp_in|mlp_gate|modulation/dense)/(kernel|bias)$"
)
# `tensor` splits these layers by their inputs. Their products are then summed over devices.
ROWS = re.compile(r"(\b|_)(projection|mlp_out)/kernel$")
SMALL = 2**12  # elements; an array below is not worth a collective


def make_mesh(
    axes: Mapping[str, int], batch_size: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return a mesh of named axes over all devices.

    Devices that are neighbours in the last axes are neighbours in the machine. If there are several
    slices of TPUs, which a slower network joins, the first axes go over them.

    Args:
        axes: name to size, for example `{"data": -1}` or `{"data": 2, "fsdp": -1}`. A size of −1,
            one at most, takes all devices left over.
        batch_size: examples at once over all devices, to be split over `data` and `fsdp`.
        devices: all of these instead, which need not be there (`jax.experimental.topologies`).

    Raises:
        ValueError: the sizes need more devices than there are or leave a remainder, or the batch or
            the slices do not divide.
    """
    devices = jax.devices() if devices is None else devices
    axes = mesh_axes(axes, batch_size, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # An axis may be part of an axis of the machine's torus.
    if slices > 1:
        over_slices = _shares(axes, slices)
        within = [size // share for size, share in zip(axes.values(), over_slices, strict=True)]
        grid = create_hybrid_device_mesh(
            within, over_slices, devices, allow_split_physical_axes=True
        )
    else:
        grid = create_device_mesh(tuple(axes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(axes), axis_types=_types(axes))


def abstract_mesh(axes: Mapping[str, int], batch_size: int) -> AbstractMesh:
    """Return a mesh without devices, on which arrays have shapes and shardings but no place.

    Args, Raises: as of `make_mesh`.
    """
    axes = mesh_axes(axes, batch_size, math.prod(axes.values()))
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=_types(axes))


def _shares(axes: Mapping[str, int], slices: int) -> list[int]:
    """Return over how many slices each axis goes, the first ones as far as they can."""
    shares, left = [], slices
    for size in axes.values():
        shares.append(math.gcd(size, left))
        left //= shares[-1]
    if left > 1:
        raise ValueError(f"the mesh {dict(axes)} does not divide over {slices} slices of TPUs")
    return shares


def _types(axes: Mapping[str, int]) -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(axes)


def mesh_axes(axes: Mapping[str, int], batch_size: int, num_devices: int) -> dict[str, int]:
    """Return the sizes of a mesh's axes over so many devices.

    Args, Raises: as of `make_mesh`.
    """
    given = axes = dict(axes)
    fixed = math.prod(size for size in axes.values() if size != -1)
    if list(axes.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in axes.values()):
        raise ValueError(f"mesh sizes must be positive, with one −1 at most; got {axes}")
    if -1 in axes.values():
        axes = {name: num_devices // fixed if size == -1 else size for name, size in axes.items()}
    if unknown := axes.keys() - set(AXES):
        raise ValueError(f"the mesh has an axis {min(unknown)!r}; the axes are {', '.join(AXES)}")
    if math.prod(axes.values()) != num_devices:
        needed = f"a multiple of {fixed}" if -1 in given.values() else fixed
        raise ValueError(
            f"the mesh {given} needs {needed} devices and this machine has {num_devices}: "
            f"sizes (config.mesh) must multiply to {num_devices}, and one of them may be −1"
        )
    shards = math.prod(axes.get(name, 1) for name in BATCH_AXES)
    if batch_size % shards:
        split = " × ".join(f"{name} {axes[name]}" for name in BATCH_AXES if name in axes)
        raise ValueError(
            f"a batch of {batch_size} does not divide over {shards} devices (mesh axes {split}): "
            f"a multiple of {shards} does (config.batch_size divided by config.accumulation_steps)"
        )
    return axes


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of examples, split over `data` and `fsdp`."""
    return NamedSharding(
        mesh, PartitionSpec(tuple(name for name in BATCH_AXES if name in mesh.axis_names))
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, bool] | None:
    """Return options of XLA for programs on a mesh, for `jax.jit`.

    On TPUs parameters are gathered beside products. By default the products wait for the gathers.
    """
    devices = () if isinstance(mesh, AbstractMesh) else mesh.devices.flat
    if not any(device.platform == "tpu" for device in devices):
        return None
    return {
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    }


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a batch that live on this process' devices, in order."""
    rows = np.arange(batch_size)
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([rows[part] for part in slices]))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array | np.ndarray]:
    """Return `process_rows` of a batch for a function that is jitted with `batch_sharding`.

        step = jax.jit(step, in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)))

    With one process these are the NumPy arrays themselves, which the call places. Without
    `in_shardings` XLA may split them in another way than by examples. The copy to the devices is
    asynchronous: it goes on while they compute the step before.
    """
    if jax.process_count() == 1:
        return dict(batch)  # the call itself places it, in a fraction of the time
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, a) for name, a in batch.items()}


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Return how an array of the state is split.

    `tensor` splits the outputs of `COLUMNS` and the inputs of `ROWS`, if they divide. `fsdp` splits
    the largest other dimension that divides, if the array has 4,096 elements or more. Dimension 0
    of scanned layers stays whole, since each iteration of the scan takes one slice of it.

    Args:
        path: names of the array's place in the state, joined by "/".
    """
    dimensions = range(bool(SCANNED.search(path)), len(shape))
    splits: list[tuple[str, Sequence[int]]] = []
    if COLUMNS.search(path):
        splits.append((TENSOR, dimensions[-1:]))
    if ROWS.search(path):
        splits.append((TENSOR, dimensions[-2:-1]))
    if math.prod(shape) >= SMALL:
        splits.append(("fsdp", dimensions))
    spec: list[str | None] = [None] * len(shape)
    for axis, allowed in splits:
        size = mesh.shape.get(axis, 1)
        free = [i for i in allowed if spec[i] is None and shape[i] % size == 0]
        if size > 1 and free:
            spec[max(free, key=lambda i: shape[i])] = axis
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def variable_path(key_path: tuple) -> str:
    """Return the path of a leaf in the form used here, "params/blocks/mlp_in/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def variable_sharding(mesh: Mesh | AbstractMesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Return the function from an array's path and shape to its sharding by `partition_spec`."""
    return lambda path, shape: NamedSharding(mesh, partition_spec(path, shape, mesh))


def state_sharding(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of each array of a state, by its place there (`partition_spec`).

        shardings = state_sharding(jax.eval_shape(init, key), mesh)
        state = jax.jit(init, out_shardings=shardings)(key)

    Args:
        state: arrays, or their shapes and types, in any tree: parameters, averages, an optimizer's
            state.
    """
    sharding = variable_sharding(mesh)
    return jax.tree.map_with_path(lambda path, a: sharding(variable_path(path), a.shape), state)


def agree(mesh: Mesh) -> Callable[[bool], jax.Array]:
    """Return `flag -> whether any process gave True`.

    The function is a collective, which every process must call equally often.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    any_process = jax.jit(jnp.any, out_shardings=replicated(mesh))
    local = len(mesh.local_devices)
    return lambda flag: any_process(
        jax.make_array_from_process_local_data(sharding, np.full(local, flag), (mesh.size,))
    )
