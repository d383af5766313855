"""What a step needs and sends on devices that are not there, by the rules of its shardings."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from genjax.training.collectives import Collective
from genjax.training.devices import Device
from genjax.training.mesh import BATCH_AXES, SCANNED, partition_spec


def tpu_topology(device: Device, count: int) -> list[jax.Device]:
    """So many TPU chips to compile for.

    Raises:
        ImportError: the TPU compiler is not installed.
        ValueError: no topology of so many chips.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(f"TPU programs are compiled by libtpu ({error}): pip install libtpu") from error
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud which machine this is
    family, dimensions = device.topology
    shape = torus(count, dimensions)
    return list(topologies.get_topology_desc(f"{family}:{'x'.join(map(str, shape))}", "tpu").devices)


def torus(count: int, dimensions: int) -> list[int]:
    """Sides of a torus of `count` chips, as equal as powers of two can be.

    Raises:
        ValueError: `count` is no power of two.
    """
    if count & (count - 1):
        raise ValueError(f"slices of TPUs have a power of two of chips; the mesh has {count}")
    sides = [1] * dimensions
    while math.prod(sides) < count:
        sides[sides.index(min(sides))] *= 2
    return sorted(sides, key=lambda side: (side == 1, side))  # as 2×2×1, of one host


def shard_bytes(tree: Any) -> int:
    """Of all arrays, what one device holds."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def saved_bytes(saved: Sequence[jax.ShapeDtypeStruct], mesh: Mesh | AbstractMesh, examples: int) -> int:
    """What one device holds of activations: those of its examples, and its parts of weights stored in another type."""
    shards = math.prod(mesh.shape.get(name, 1) for name in BATCH_AXES)
    fsdp = mesh.shape.get("fsdp", 1)
    parts = (shards if a.ndim > 1 and a.shape[1] % examples == 0 else fsdp for a in saved)
    return sum(a.size * a.dtype.itemsize // part for a, part in zip(saved, parts, strict=True))


def data_parallel_collectives(params: Any, mesh: Mesh | AbstractMesh, passes: int = 1) -> list[Collective]:
    """What a step has to send by the rules of `partition_spec`.

    In each of `passes` an array split over `fsdp` is gathered, those of scanned layers for the forward and again for the
    backward pass, and its gradient summed, each device keeping its part, which is then summed over `data`. What is not
    split has its gradient summed over all.
    """
    found: Counter = Counter()

    def add(kind: str, axes: tuple[str, ...], size: int, times: int = 1) -> None:
        if axes := tuple(name for name in axes if mesh.shape.get(name, 1) > 1):
            found[kind, axes, "count"] += times
            found[kind, axes, "bytes"] += times * size

    for path, a in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        size, fsdp = a.size * a.dtype.itemsize, mesh.shape.get("fsdp", 1)
        if fsdp > 1 and partition_spec(name, a.shape, mesh):
            add("all-gather", ("fsdp",), size, passes * (2 if SCANNED.search(name) else 1))
            add("reduce-scatter", ("fsdp",), size // fsdp, passes)
            add("all-reduce", ("data",), size // fsdp)
        else:
            add("all-reduce", BATCH_AXES, size)
    keys = sorted({key[:2] for key in found})
    return [Collective(*key, found[*key, "count"], found[*key, "bytes"]) for key in keys]


def collective_seconds(each: Collective, mesh: Mesh | AbstractMesh, device: Device) -> float:
    """Of a collective alone, by rings: every device sends (n − 1)/n of the whole, and twice that to reduce and gather it.

    Rings through several nodes enter and leave each by the network cards of all of their devices in it.
    """
    n = math.prod(mesh.shape[name] for name in each.axes)
    places = [list(mesh.shape).index(name) for name in each.axes]
    sizes = list(mesh.shape.values())
    span, stride = math.prod(sizes[min(places) :]), math.prod(sizes[max(places) + 1 :])
    rate = device.link
    if device.node and span > device.node:
        rate = min(rate, device.network * min(n, max(1, device.node // stride)))
    parts = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
    return each.bytes * parts.get(each.kind, (n - 1) / n) / rate
