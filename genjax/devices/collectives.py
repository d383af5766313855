"""What a compiled program sends between devices, read from it before it runs."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Between slices of TPUs hosts send, each chip's part: what is sent, and what the collective is.
_OVER_SLICES = re.compile(r"= \((.*?), u32\[\], token\[\]\) send\(.*?_xla_megascale_transfer_type=\"(\w+)\"")
SLICES = "slices"
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """A kind of collective over some axes of the mesh, or over `SLICES` of TPUs: how often it runs, and the bytes of its results.

    `bytes` counts one device's results: for an all-gather the gathered array, for a reduce-scatter the part
    that the device keeps.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int


def num_slices(mesh: Mesh | AbstractMesh) -> int:
    """Of TPUs, which a slower network joins; one of other devices."""
    devices = () if isinstance(mesh, AbstractMesh) else mesh.devices.flat
    return len({getattr(device, "slice_index", 0) for device in devices}) or 1


def collectives(compiled: Any, mesh: Mesh) -> list[Collective]:
    """All collectives of one run of `jitted.lower(…).compile()`; those in a loop count once per iteration.

    Raises:
        ValueError: a loop around a collective does not say how often it iterates.
    """
    lines: dict[str, list[str]] = {}
    text = compiled.as_text()
    for line in text.splitlines():
        if opening := _COMPUTATION.match(line):
            current = lines.setdefault(opening[1], [])
        elif line.startswith("  "):
            current.append(line)
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[1]

    totals: Counter[tuple[str, tuple[str, ...]]] = Counter()
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def visit(computation: str, times: int | None) -> None:
        for line in lines[computation]:
            if found := _OPERATION.search(line):
                if times is None:
                    raise ValueError(f"{found[2]} in {computation}, a loop of unknown length")
                key = found[2], _axes(found[3], mesh.shape)
                counts[key] += times
                totals[key] += times * sum(map(_bytes, _results(found[1], line)))
            elif found := _OVER_SLICES.search(line):
                key = found[2].lower().replace("_", "-"), (SLICES,)
                grows = {"all-gather": num_slices(mesh), "reduce-scatter": 1 / num_slices(mesh)}.get(
                    key[0], 1
                )
                counts[key] += times
                totals[key] += int(times * grows * sum(map(_bytes, _ARRAY.findall(found[1]))))
            inner = times
            if " while(" in line:
                trips = _trips(line, lines)
                inner = times * trips if trips and times is not None else None
            for _, names in _CALLED.findall(line):
                for name in re.findall(r"[\w.-]+", names):
                    visit(name, inner)

    visit(entry, 1)
    return [Collective(kind, axes, counts[kind, axes], totals[kind, axes]) for kind, axes in sorted(totals)]


def _trips(loop: str, lines: Mapping[str, list[str]]) -> int | None:
    """How often a loop iterates: as XLA has noted, or, where it counts up to a constant, that over the constant that it adds,
    which is above 1 where it has unrolled the loop; XLA counts from 0."""
    if noted := _TRIP_COUNT.search(loop):
        return int(noted[1])
    condition, body = (
        "\n".join(lines[re.search(rf"{part}=%?([\w.-]+)", loop)[1]]) for part in ("condition", "body")
    )
    constants = dict(re.findall(r"%([\w.-]+) = [su]32\S* constant\((\d+)\)", condition + "\n" + body))
    compared = re.search(r"ROOT .* compare\(%([\w.-]+), %([\w.-]+)\), direction=LT", condition)
    if compared is None or compared[2] not in constants:
        return None
    place = re.search(rf"%{re.escape(compared[1])} = .*, index=(\d+)", condition)
    result = re.search(r"ROOT .* tuple\((.*?)\)", body)
    step = 1
    if place and result and len(after := re.findall(r"%([\w.-]+)", result[1])) > int(place[1]):
        counted = re.escape(after[int(place[1])])
        added = re.search(rf"%{counted} = \S+ add\(%([\w.-]+), %([\w.-]+)\)", body)
        step = next(
            (int(constants[name]) for name in (added.groups() if added else ()) if name in constants), 1
        )
    return -(-int(constants[compared[2]]) // step)


def _results(types: str, line: str) -> list[tuple[str, str]]:
    """The arrays that a collective makes; one that only starts has its operands before them, and tokens after."""
    arrays = _ARRAY.findall(types)
    if re.search(r"(all-gather|collective-permute)-start\(", line):
        arrays = [(dtype, shape) for dtype, shape in arrays if not (dtype == "u32" and not shape)]
        return arrays[len(arrays) // 2 :]
    return arrays


def _bytes(array: tuple[str, str]) -> int:
    dtype, shape = array
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def _axes(attributes: str, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the first group's members, or a permutation's sources and targets, differ."""
    sizes = tuple(mesh_shape.values())
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]+\})\}", attributes):
        ends = np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
        moved = np.diff(np.unravel_index(ends, sizes), axis=2).any(axis=(1, 2))
        return tuple(name for name, differ in zip(mesh_shape, moved, strict=True) if differ)
    places = np.unravel_index(_first_group(attributes, math.prod(sizes)), sizes)
    return tuple(name for name, place in zip(mesh_shape, places, strict=True) if len(set(place)) > 1)


def _first_group(attributes: str, num_devices: int) -> np.ndarray:
    """The first replica group in any of XLA's ways to write it."""

    def numbered(shape: str, permutation: str | None) -> np.ndarray:
        devices = np.arange(num_devices).reshape([int(n) for n in shape.split(",")])
        return devices.transpose([int(n) for n in permutation.split(",")]) if permutation else devices

    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return np.array([int(n) for n in found[1].split(",")])
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return numbered(found[2], found[3]).reshape(-1, int(found[1]))[0]
    if found := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}",
        attributes,
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        devices = numbered(found[2] or str(num_devices), found[3]).reshape([int(n) for n in sizes.values()])
        varying = [name in re.findall(r"'(\w+)'", found[4]) for name in sizes]
        return devices[tuple(slice(None) if vary else 0 for vary in varying)].reshape(-1)
    return np.arange(num_devices)  # no groups given, or one empty one: all together
