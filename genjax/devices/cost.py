"""Costs of a computation, counted before it runs."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from genjax.devices.specifications import device_of


def peak_operations(device_kind: str) -> float | None:
    """Return a device's peak of dense bfloat16 operations a second, or None if unknown."""
    device = device_of(device_kind)
    return device and device.operations


def multiply_adds(function: Callable, *args: Any) -> int:
    """Count the multiply-adds of matrix products and convolutions in `function(*args)`.

    The count is of all devices together. A scan counts as often as it iterates, a `jax.shard_map`
    on each device, and a `cond` as its dearest branch. Operations that no result depends on do not
    count. Papers that call a multiply-add one "FLOP" report this number. Hardware vendors report
    twice as much.

    Args:
        args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: the iterations of a loop with products inside are known only at run time.
    """
    return _sum(_multiply_adds, _needed(function, *args))


def multiply_adds_written(function: Callable, *args: Any) -> int:
    """Count the multiply-adds of a program whose loops run once, as XLA's `cost_analysis` does.

    So a product counts as often as it stands in the compiled program.

    Args, Raises: as of `multiply_adds`.
    """

    def written(params):  # what `unroll` leaves over stands after the loop
        length, unroll = params["length"], params["unroll"]
        return min(length, unroll + length % unroll) if unroll else length

    return _sum(_multiply_adds, _needed(function, *args), written)


def product_bytes(function: Callable, *args: Any) -> int:
    """Count the bytes that matrix products and convolutions in `function(*args)` read and write.

    Memory has to move no more if a compiler fuses everything else with them. The products of
    attention, over batch and heads, count without their largest array, the logits or weights:
    kernels for attention keep it on the chip. With a single query the largest array is the keys or
    values, such as a cache, which count.

    Args, Raises: as of `multiply_adds`.
    """
    return _sum(_bytes, _needed(function, *args))


def _needed(function: Callable, *args: Any) -> Any:
    """Return the jaxpr without operations that no result depends on: compilers leave them out."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def array_bytes(array: Any) -> int:
    """Return the bytes of anything with a shape and a type."""
    return math.prod(array.shape) * array.dtype.itemsize


def working_bytes(
    function: Callable, *args: Any, size: Callable[[Any], int] = array_bytes, in_place: bool = False
) -> int:
    """Return the most bytes that `function(*args)` holds at once, its arguments aside.

    An array counts from its making to its last use. Broadcasts and reshapes do not count. Nor do
    elementwise results with one use that is elementwise or a reduction, which compilers fuse.

    Args:
        args: as of `multiply_adds`.
        size: bytes of an array by its shape and type.
        in_place: results take the place of donated arguments and cost nothing; else they count.
    """
    jaxpr = _needed(function, *args)
    free = {id(var) for var in jaxpr.outvars} if in_place else ()
    return _working(jaxpr, lambda var: 0 if id(var) in free else size(var.aval))


def _multiply_adds(equation: Any) -> int:
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    kernel = equation.invars[1].aval
    per_output = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    # The zeros between the inputs of a transposed convolution cost nothing.
    zeros_between = math.prod(params["lhs_dilation"])
    return equation.outvars[0].aval.size * per_output // zeros_between


def _bytes(equation: Any) -> int:
    sizes = sorted(
        var.aval.size * var.aval.dtype.itemsize for var in (*equation.invars, *equation.outvars)
    )
    if equation.primitive.name != "dot_general":
        return sum(sizes)
    batched = len(equation.params["dimension_numbers"][1][0])
    free = equation.outvars[0].aval.shape[batched:]
    single = len(free) == 1 or 1 in free  # a single query may have no dimension
    return sum(sizes[:-1] if batched > 1 and not single else sizes)


Iterations = Callable[[dict[str, Any]], int]  # of a scan's parameters
_all: Iterations = operator.itemgetter("length")


def _sum(measure: Callable[[Any], int], closed_jaxpr: Any, iterations: Iterations = _all) -> int:
    jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
    return sum(_sum_of_equation(measure, equation, iterations) for equation in jaxpr.eqns)


def _sum_of_equation(measure: Callable[[Any], int], equation: Any, iterations: Iterations) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return measure(equation)
    if name == "pallas_call":
        # A kernel pads, and repeats what it does not store. Count its default branch instead.
        return 0
    inner = [_sum(measure, jaxpr, iterations) for jaxpr in inner_jaxprs(params)]
    if name == "scan":
        return iterations(params) * sum(inner)
    if name == "shard_map":  # whose shapes inside are those of one device
        mesh, axes = params["mesh"], params["newly_manual_axes"]
        return math.prod(mesh.shape[axis] for axis in axes) * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "a while loop holds matrix products, and how often it iterates is unknown before it "
            "runs; use `jax.lax.scan` or a `fori_loop` with Python integers as bounds"
        )
    return sum(inner)


_VIEWS = ("broadcast_in_dim", "reshape", "squeeze", "iota")
_NOT_FUSED = (
    "dot_general",
    "conv_general_dilated",
    "sort",
    "scatter",
    "cumsum",
    "cumprod",
    "optimization_barrier",
)


def _elementwise(equation: Any) -> bool:
    """Return whether each element of the one result comes from one element of each operand.

    Operands have the shape of the result, or are scalars.
    """
    if (
        equation.primitive.name in _NOT_FUSED
        or len(equation.outvars) > 1
        or any(inner_jaxprs(equation.params))
    ):
        return False
    return all(var.aval.shape in ((), equation.outvars[0].aval.shape) for var in equation.invars)


def _absorbs(equation: Any) -> bool:
    """Return whether an elementwise operand is computed within this operation."""
    return equation is not None and (
        _elementwise(equation) or equation.primitive.name.startswith("reduce_")
    )


def _working(closed_jaxpr: Any, size: Callable[[Any], int]) -> int:
    jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
    last = {id(var): len(jaxpr.eqns) for var in jaxpr.outvars}
    uses: dict[int, list[Any]] = {id(var): [None] for var in jaxpr.outvars}
    never_made = set()
    for i, equation in reversed(list(enumerate(jaxpr.eqns))):
        until, result = i, id(equation.outvars[0]) if equation.outvars else None
        fused = (
            _elementwise(equation) and len(uses.get(result, [])) == 1 and _absorbs(uses[result][0])
        )
        if fused or equation.primitive.name in _VIEWS:
            never_made.add(result)
            until = last.get(result, i)  # its operands live until its last use
        for var in equation.invars:
            last[id(var)] = max(last.get(id(var), 0), until)
            uses.setdefault(id(var), []).append(equation)

    live: dict[int, int] = {}  # bytes by variable
    peak = 0
    for i, equation in enumerate(jaxpr.eqns):
        params = equation.params
        made = {id(var): size(var) for var in equation.outvars if id(var) not in never_made}
        inside = max((_working(inner, size) for inner in inner_jaxprs(params)), default=0)
        if equation.primitive.name == "scan":
            # A scan also holds a slice of the arrays it scans, and the results it stacks.
            through = equation.invars[params["num_consts"] + params["num_carry"] :]
            inside += sum(made.values()) + sum(map(size, through)) // max(params["length"], 1)
        peak = max(peak, sum(live.values()) + max(sum(made.values()), inside))
        live = {var: held for var, held in (live | made).items() if last.get(var, i) > i}
    return peak


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs within an operation: of a loop, a branch, a call."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns"):
                yield part
