"""Where a compiled TPU program spends its time: a bound for each of its operations."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from genjax.devices.collectives import KINDS
from genjax.devices.hlo import ENDS, STARTS, Array, Computation, Operation, Program, read
from genjax.devices.specifications import Device

CATEGORIES = (
    "products",
    "layout changes",
    "elementwise",
    "kernels",
    "collectives",
    "asynchronous copies",
    "other",
)
# These cost nothing by themselves: names for memory, ends of what has started, calls of others.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|opt-barrier"
    r"|while|conditional|call|.*-done|.*-update"
)
_MOVES = frozenset(
    "bitcast bitcast-convert broadcast compare concatenate constant convert copy dynamic-slice "
    "dynamic-update-slice get-tuple-element iota pad parameter reshape reverse select slice "
    "transpose tuple".split()
)
_NOT_ELEMENTWISE = frozenset(("custom-call", "gather", "scatter", "sort", "rng-bit-generator"))
_VIEWS = ("bitcast", "copy", "reshape", "transpose")
_SLICES = ("slice", "dynamic-slice", "gather")
# The arrays of a collective that goes on beside a fusion, as places among results and operands.
_PASSED_ON = re.compile(r"\{(\d+)\}: \((\d+), \{\}\)")
_WRAPPERS = re.compile(
    r"(?<![^/])(jit\([^)]*\)|while|body|closed_call|checkpoint|cond|branch_\d+_fun)/"
)


class Cost(NamedTuple):
    """The cost of all runs of one operation on one device.

    Attributes:
        category: one of the `CATEGORIES`.
        shapes: the types and shapes of its results.
        line: FILE:LINE of Python that it comes from; empty if unknown.
        name: JAX's name of it: transformations, modules, primitive; empty if unknown.
        runs: how often it runs.
        operations: of products, two to a multiply-add; those of a kernel are not seen.
        bytes: read from and written to main memory, tiles' padding included.
        cycles: the compiler's own estimate; 0 where it gives none, as for kernels.
        seconds: the bound, the larger of operations over the peak and bytes over the bandwidth.
    """

    category: str
    opcode: str
    shapes: str
    line: str
    name: str
    runs: int
    operations: int
    bytes: int
    cycles: int
    seconds: float


def costs_of(compiled: Any, device: Device) -> list[Cost]:
    """Return the cost of every operation of `jitted.lower(…).compile()` that runs by itself.

    An operation of a loop counts once per iteration. Those of every branch of a condition count.

    Raises:
        ValueError: a loop does not say how often it iterates.
    """
    program, costs = read(compiled.as_text()), []
    for operation, computation, times in program.runs():
        free = _FREE.fullmatch(operation.opcode) or '"AllocateBuffer"' in operation.attributes
        if free or _marked(program, operation, ENDS):
            continue
        if times is None:
            raise ValueError(
                f"{operation.name} is in a loop of unknown length, so its cost is unknown"
            )
        line, name = program.source_of(computation, operation)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
        operations = times * _products(program, computation, operation)
        moved = times * _moved(program, computation, operation)
        costs.append(
            Cost(
                category=_category(program, operation),
                opcode=operation.opcode,
                shapes=_shapes(operation),
                line=line,
                name=_WRAPPERS.sub("", name),
                runs=times,
                operations=operations,
                bytes=moved,
                cycles=times * int(cycles[1]) if cycles else 0,
                seconds=max(operations / device.operations, moved / device.bandwidth),
            )
        )
    return costs


def total(costs: Sequence[Cost]) -> dict[str, Any]:
    """Return the number of operations (`count`), and the sums of all that is counted of them."""
    counted = ("runs", "operations", "bytes", "cycles", "seconds")
    return dict(count=len(costs)) | {
        name: sum(getattr(cost, name) for cost in costs) for name in counted
    }


def breakdown(compiled: Any, device: Device, most_expensive: int = 10) -> dict[str, Any]:
    """Return a program's costs by `categories`, their `total`, and `most_expensive` operations.

    Operations with the same results, line and name share a row, as those of unrolled layers.

    Raises:
        ValueError: as of `costs_of`.
    """
    costs = costs_of(compiled, device)
    of_category = {name: [cost for cost in costs if cost.category == name] for name in CATEGORIES}
    same: dict[tuple, list[Cost]] = {}
    for cost in costs:
        same.setdefault(cost[: Cost._fields.index("runs")], []).append(cost)
    rows = [
        dict(zip(Cost._fields, key, strict=False)) | total(members) for key, members in same.items()
    ]
    return dict(
        categories={name: total(members) for name, members in of_category.items() if members},
        total=total(costs),
        most_expensive=sorted(rows, key=lambda row: -row["seconds"])[:most_expensive],
    )


def _category(program: Program, operation: Operation) -> str:
    opcodes = {inner.opcode.removesuffix("-start") for inner in program.inside(operation)}
    if opcodes & set(KINDS):
        return "collectives"
    if operation.opcode.endswith("-start"):
        return "asynchronous copies"
    if '"tpu_custom_call"' in operation.attributes:
        return "kernels"
    if opcodes & {"convolution", "dot"}:
        return "products"
    if opcodes <= _MOVES:
        return "layout changes"
    return "other" if opcodes & _NOT_ELEMENTWISE else "elementwise"


def _moved(program: Program, computation: Computation, operation: Operation) -> int:
    """Return the bytes of main memory that one run reads and writes.

    An array that is sliced or updated counts in part only.
    """
    if operation.opcode.endswith("-start"):
        # Its results are what it reads, what it writes, and counters.
        arrays = [array for array in operation.results if array.shape]
        copied = math.inf
        if _category(program, operation) != "collectives":
            copied = min(array.size for array in arrays)
        return sum(_part(array, copied) for array in arrays)
    read_from = [computation[name].results for name in operation.operands]
    unwritten, passed_on = _passed_on(operation)
    unread = set() if _marked(program, operation, STARTS) else passed_on
    return sum(
        _part(results[0], _elements_read_by(program, operation, place))
        for place, results in enumerate(read_from)
        if len(results) == 1 and place not in unread
    ) + sum(
        _part(array, _elements_written(program, computation, operation, place))
        for place, array in enumerate(operation.results)
        if place not in unwritten
    )


def _shapes(operation: Operation) -> str:
    """Return the types and shapes of results, without those of a collective that goes on beside."""
    passed_on, _ = _passed_on(operation)
    made = [array for place, array in enumerate(operation.results) if place not in passed_on]
    shown = [array for array in made if array.shape or len(made) == 1]
    return " ".join(f"{array.dtype}[{','.join(map(str, array.shape))}]" for array in shown)


def _passed_on(operation: Operation) -> tuple[set[int], set[int]]:
    """Return the places, among results and operands, of a collective that goes on beside."""
    pairs = _PASSED_ON.findall(operation.attributes) if operation.opcode == "fusion" else []
    return {int(result) for result, _ in pairs}, {int(operand) for _, operand in pairs}


def _marked(program: Program, operation: Operation, mark: str) -> bool:
    """Return whether a fusion starts, or ends, a collective that goes on beside others."""
    return operation.opcode == "fusion" and any(
        mark in inner.attributes for inner in program.inside(operation)
    )


def _part(array: Array, elements: int | float) -> int:
    """Return the bytes of so many elements of an array, at most of all; 0 outside main memory."""
    if not array.in_main_memory or not array.size:
        return 0
    return int(array.padded_bytes * min(1, elements / array.size))


def _elements_read_by(program: Program, operation: Operation, place: int) -> int | float:
    """Return how many elements of the operand at `place` an operation reads; ∞ for all."""
    if operation.opcode in _SLICES and place == 0:
        return operation.results[0].size
    if operation.opcode == "dynamic-update-slice" and place == 0:
        return 0
    if operation.opcode != "fusion":
        return math.inf
    body = program.computations[operation.called[0]]
    parameters = {each.operands[0]: each for each in body.values() if each.opcode == "parameter"}
    return _elements_read(program, body, parameters[str(place)])


def _elements_read(program: Program, body: Computation, array: Operation) -> int | float:
    """Return how many elements of an array the operations of a fusion read; ∞ for all."""
    if array.is_root:
        return math.inf
    return sum(
        _elements_read(program, body, user)
        if user.opcode in _VIEWS
        else _elements_read_by(program, user, place)
        for user in body.values()
        for place, name in enumerate(user.operands)
        if name == array.name
    )


def _elements_written(
    program: Program, computation: Computation, operation: Operation, place: int = 0
) -> int | float:
    """Return how many elements of the result at `place` an operation writes; ∞ for all."""
    if operation.opcode == "dynamic-update-slice":
        return computation[operation.operands[1]].results[0].size
    if operation.opcode == "bitcast":
        return _elements_written(program, computation, computation[operation.operands[0]])
    if operation.opcode != "fusion":
        return math.inf
    body = program.computations[operation.called[0]]
    (root,) = (each for each in body.values() if each.is_root)
    if root.opcode == "tuple":
        return _elements_written(program, body, body[root.operands[place]])
    return _elements_written(program, body, root, place)


def _products(program: Program, computation: Computation, operation: Operation) -> int:
    """Return the number of operations of the products in one run, two to a multiply-add."""
    if operation.opcode == "fusion":
        body = program.computations[operation.called[0]]
        return sum(_products(program, body, inner) for inner in body.values())
    if operation.opcode not in ("dot", "convolution"):
        return 0
    inputs, kernel = (computation[name].results[0].shape for name in operation.operands[:2])
    outputs = operation.results[0]
    if operation.opcode == "convolution":
        return _convolution(inputs, kernel, outputs.shape, operation.attributes)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)[1]
    return 2 * outputs.size * math.prod(inputs[int(axis)] for axis in contracted.split(",") if axis)


def _convolution(
    inputs: tuple[int, ...], kernel: tuple[int, ...], outputs: tuple[int, ...], attributes: str
) -> int:
    """Return a convolution's operations, without products with padding or zeros between inputs.

    On TPUs products of matrices are convolutions. Products of batches of matrices have such zeros.
    """
    of_inputs, of_kernel, of_outputs = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", attributes
    ).groups()
    spatial = sorted(filter(str.isdecimal, of_inputs))
    window = re.search(r"window=\{(.*?)\}", attributes)

    def options(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=(\S+)", window[1]) if window else None
        return found[1].split("x") if found else [default] * len(spatial)

    names = dict(size="1", stride="1", pad="0_0", lhs_dilate="1", rhs_dilate="1")
    pairs = 1  # of an output's and a kernel's place that meet an input
    for axis, *numbers, pad, apart, dilation in zip(
        spatial, *map(options, names, names.values()), strict=True
    ):
        size, stride = map(int, numbers)
        length = (inputs[of_inputs.index(axis)] - 1) * int(apart) + 1
        starts = np.arange(outputs[of_outputs.index(axis)])[:, None] * stride - int(
            pad.partition("_")[0]
        )
        places = starts + np.arange(size) * int(dilation)
        pairs *= int(np.sum((places >= 0) & (places < length) & (places % int(apart) == 0)))
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    batch, features = inputs[of_inputs.index("b")], kernel[of_kernel.index("i")]
    return (
        2
        * pairs
        * batch
        * features
        * outputs[of_outputs.index("f")]
        // int(groups[1] if groups else 1)
    )
