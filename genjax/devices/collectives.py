"""Collectives of a compiled program, read from it before it runs."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from genjax.devices.hlo import Array, Operation, read

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Between slices of TPUs, hosts send each chip's part. The attribute names the collective.
_OVER_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
SLICES = "slices"


class Collective(NamedTuple):
    """Count and bytes of one kind of collective over some axes of the mesh, or over `SLICES`.

    `bytes` counts one device's results: the gathered array of an all-gather, and the part that the
    device keeps of a reduce-scatter.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int


def num_slices(mesh: Mesh | AbstractMesh) -> int:
    """Count the slices of TPUs, which a slower network joins; other devices are one slice."""
    devices = () if isinstance(mesh, AbstractMesh) else mesh.devices.flat
    return len({getattr(device, "slice_index", 0) for device in devices}) or 1


def collectives(compiled: Any, mesh: Mesh | AbstractMesh) -> list[Collective]:
    """Return all collectives of one run of `jitted.lower(…).compile()`.

    Those in a loop count once per iteration.

    Raises:
        ValueError: a loop around a collective does not say how often it iterates.
    """
    program = read(compiled.as_text())
    totals: Counter[tuple[str, tuple[str, ...]]] = Counter()
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for operation, _, times in program.runs():
        for inner in program.inside(operation):
            if not (found := _sent(inner, mesh)):
                continue
            kind, axes, size = found
            if times is None:
                raise ValueError(
                    f"{kind} {inner.name} is in a loop of unknown length, so its count is unknown"
                )
            counts[kind, axes] += times
            totals[kind, axes] += int(times * size)
    return [
        Collective(kind, axes, counts[kind, axes], totals[kind, axes])
        for kind, axes in sorted(totals)
    ]


def _sent(
    operation: Operation, mesh: Mesh | AbstractMesh
) -> tuple[str, tuple[str, ...], int | float] | None:
    """Return kind, axes and bytes of results of a collective, or None for another operation."""
    kind = operation.opcode.removesuffix("-start")
    if kind in KINDS:
        return kind, _axes(operation.attributes, mesh.shape), sum(a.bytes for a in _made(operation))
    transfer = _OVER_SLICES.search(operation.attributes)
    if operation.opcode != "send" or not transfer:
        return None
    kind, slices = transfer[1].lower().replace("_", "-"), num_slices(mesh)
    grows = {"all-gather": slices, "reduce-scatter": 1 / slices}.get(kind, 1)
    return kind, (SLICES,), grows * operation.results[0].bytes


def _made(operation: Operation) -> tuple[Array, ...]:
    """Return a collective's arrays; one that only starts has operands before, tokens after."""
    if operation.opcode not in ("all-gather-start", "collective-permute-start"):
        return operation.results
    arrays = [array for array in operation.results if array.shape or array.dtype != "u32"]
    return tuple(arrays[len(arrays) // 2 :])


def _axes(attributes: str, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes along which the first group, or a permutation's ends, differ."""
    sizes = tuple(mesh_shape.values())
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]+\})\}", attributes):
        ends = np.array(
            [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
        )
        moved = np.diff(np.unravel_index(ends, sizes), axis=2).any(axis=(1, 2))
        return tuple(name for name, differ in zip(mesh_shape, moved, strict=True) if differ)
    places = np.unravel_index(_first_group(attributes, math.prod(sizes)), sizes)
    return tuple(
        name for name, place in zip(mesh_shape, places, strict=True) if len(set(place)) > 1
    )


def _first_group(attributes: str, num_devices: int) -> np.ndarray:
    """Return the first replica group in any of XLA's ways to write it."""

    def numbered(shape: str, permutation: str | None) -> np.ndarray:
        devices = np.arange(num_devices).reshape([int(n) for n in shape.split(",")])
        return (
            devices.transpose([int(n) for n in permutation.split(",")]) if permutation else devices
        )

    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return np.array([int(n) for n in found[1].split(",")])
    if found := re.search(
        r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return numbered(found[2], found[3]).reshape(-1, int(found[1]))[0]
    if found := re.search(
        r"replica_groups=mesh\[(.*?)\]"
        r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}",
        attributes,
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        devices = numbered(found[2] or str(num_devices), found[3]).reshape(
            [int(n) for n in sizes.values()]
        )
        varying = [name in re.findall(r"'(\w+)'", found[4]) for name in sizes]
        return devices[tuple(slice(None) if vary else 0 for vary in varying)].reshape(-1)
    return np.arange(num_devices)  # no groups given, or one empty one: all together
