"""Compiled programs as operations, read from the text (HLO) that XLA prints of them."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^  (ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:, (.*))?$", re.DOTALL
)
_ARRAY = re.compile(r"\b(pred|c\d+|[suf]\d+|bf16|f8\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(?:body|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.-]+)"
)
_LIBRARY = re.compile(r"site-packages/(?!genjax/)")
# A collective beside products is a part of several fusions. Custom calls mark the one that starts
# the collective, and the one that ends it.
STARTS, ENDS = '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'
_ENTERED = ("while", "conditional", "call")  # what these call runs operation by operation


class Array(NamedTuple):
    """One array of a program.

    Attributes:
        layout: as XLA writes it: dimensions from the fastest, tiles as T(8,128), memory as S(1).
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
        return self.size * bits // 8

    @property
    def in_main_memory(self) -> bool:
        """Whether it lies in a TPU's high-bandwidth memory, and not in memory on the chip."""
        return not re.search(r"S\([1-9]", self.layout)

    @property
    def padded_bytes(self) -> int:
        """Bytes with what the tiles of its layout add to its fastest dimensions."""
        order, _, rest = self.layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", rest)
        if not tile or not self.size:
            return self.bytes
        sides = [self.shape[int(axis)] for axis in order.split(",") if axis] or [1]
        padded = math.prod(sides)
        for side, multiple in zip(sides, reversed(_integers(tile[1])), strict=False):
            padded = padded // side * (-(-side // multiple) * multiple)
        return self.bytes * padded // self.size


class Operation(NamedTuple):
    """One operation: `results` are the arrays of a tuple, `attributes` are as XLA writes them."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The computations that it calls, a loop's condition aside."""
        return [
            name
            for names in _CALLED.findall(self.attributes)
            for name in re.findall(r"%([\w.-]+)", names)
        ]


Computation = Mapping[str, Operation]  # by name, in the order in which they run


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        lines: FILE:LINE of Python by the number of a stack frame (`source_of`).
    """

    computations: Mapping[str, Computation]
    entry: str
    lines: Mapping[int, str]

    def runs(
        self, name: str = "", times: int | None = 1
    ) -> Iterator[tuple[Operation, Computation, int | None]]:
        """Yield every operation that runs by itself, its computation, and how often it runs.

        Operations of loops, branches and calls are among them, those within a fusion are not.
        Every branch counts. The number is None within a loop whose length is unknown.
        """
        computation = self.computations[name or self.entry]
        for operation in computation.values():
            yield operation, computation, times
            if operation.opcode in _ENTERED:
                inner = times
                if operation.opcode == "while":
                    trips = self._trips(operation)
                    inner = trips and times and trips * times
                for called in operation.called:
                    yield from self.runs(called, inner)

    def inside(self, operation: Operation) -> Iterator[Operation]:
        """Yield the parts of a fusion or asynchronous operation, or another operation itself.

        A collective that goes on during several fusions is yielded only by the one that starts it.
        """
        if operation.opcode not in ("fusion", "async-start"):
            yield operation
            return
        for called in operation.called:
            parts = self.computations[called].values()
            starts = any(STARTS in each.attributes for each in parts)
            for inner in parts:
                if starts or "chain_id=" not in inner.attributes:
                    yield from self.inside(inner)

    def source_of(self, computation: Computation, operation: Operation) -> tuple[str, str]:
        """Return the line of Python that an operation comes from, and JAX's name of it.

        The line is outside of installed libraries, if there is such a line. Copies that XLA adds
        have neither line nor name. A copy gets those of the next operation that needs it, or else
        of the operation whose result it copies, or else none.
        """
        readers = lambda each: [
            other for other in computation.values() if each.name in other.operands
        ]
        makers = lambda each: [computation[name] for name in each.operands if name in computation]
        for neighbours in (readers, makers):
            near = [operation]
            for each in near:  # which grows
                if found := self._own_source(each):
                    return found
                near += [other for other in neighbours(each) if other not in near]
        return "", ""

    def _own_source(self, operation: Operation) -> tuple[str, str] | None:
        for each in (operation, *reversed(list(self.inside(operation)))):
            if frame := re.search(r"stack_frame_id=(\d+)", each.attributes):
                name = re.search(r'op_name="(.*?)"', each.attributes)
                return self.lines.get(int(frame[1]), ""), name[1] if name else ""
        return None

    def _trips(self, loop: Operation) -> int | None:
        """Return how often a loop iterates, or None if that is known only at run time.

        XLA has noted the number, or the loop counts from 0 up to a constant. The constant that it
        adds is above 1 where XLA has unrolled the loop.
        """
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(noted[1])
        condition, body = (
            self.computations[re.search(rf"\b{part}=%([\w.-]+)", loop.attributes)[1]]
            for part in ("condition", "body")
        )
        compared = next(each for each in condition.values() if each.is_root)
        if compared.opcode != "compare" or "direction=LT" not in compared.attributes:
            return None
        counter, end = (condition[name] for name in compared.operands)
        if (length := _constant(end)) is None:
            return None
        step = 1
        place = re.search(r"index=(\d+)", counter.attributes)
        after = next(each for each in body.values() if each.is_root).operands
        if place and len(after) > int(place[1]) and body[after[int(place[1])]].opcode == "add":
            added = (_constant(body[name]) for name in body[after[int(place[1])]].operands)
            step = next((number for number in added if number), 1)
        return -(-length // step)


def read(text: str) -> Program:
    """Read `jitted.lower(…).compile().as_text()`."""
    statements: dict[str, list[str]] = {}
    entry, current = "", None
    for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
        if opening := _COMPUTATION.match(line):
            current = statements.setdefault(opening[2], [])
            entry = opening[2] if opening[1] else entry
        elif line == "}":
            current = None
        elif current is not None and line.startswith("  "):
            current.append(line)
        elif current:
            current[-1] += line  # metadata of kernels goes over several lines
    computations = {
        name: {operation.name: operation for operation in map(_operation, lines)}
        for name, lines in statements.items()
    }
    return Program(computations, entry, _lines(text))


def _operation(statement: str) -> Operation:
    root, name, types, opcode, operands, attributes = _OPERATION.match(statement).groups()
    if opcode in ("parameter", "constant"):
        names = (operands,)  # its place, or its value
    else:
        names = tuple(re.findall(r"%([\w.-]+)", operands))
    results = tuple(
        Array(dtype, tuple(_integers(shape)), layout)
        for dtype, shape, layout in _ARRAY.findall(types)
    )
    return Operation(name, opcode, results, names, attributes or "", bool(root))


def _constant(operation: Operation) -> int | None:
    if operation.opcode == "constant" and operation.operands[0].isdecimal():
        return int(operation.operands[0])
    return None


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _lines(text: str) -> dict[int, str]:
    """Return each stack frame's innermost line outside of installed libraries, or else of all."""

    def table(name: str, row: str) -> dict[int, tuple[str, ...]]:
        section = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        found = re.findall(rf"^(\d+) {row}", section[1], re.MULTILINE) if section else []
        return {int(number): tuple(values) for number, *values in found}

    files = table("FileNames", '"(.*)"')
    places = table("FileLocations", r"\{file_name_id=(\d+).*? line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)")

    def place(frame: int) -> tuple[str, str]:
        file, line = places[int(frames[frame][0])]
        return files[int(file)][0], line

    def chosen(frame: int) -> str:
        stack = [place(frame)]
        while parent := int(frames[frame][1]) - 1:  # XLA adds one to a parent's number: 1 is none
            frame = parent
            stack.append(place(frame))
        own = (each for each in stack if not _LIBRARY.search(each[0]))
        file, line = next(own, stack[0])
        inside = file.startswith(os.getcwd() + os.sep)
        file = os.path.relpath(file) if inside else file.rpartition("site-packages" + os.sep)[2]
        return f"{file}:{line}"

    return {frame: chosen(frame) for frame in frames}
