"""What a computation costs, counted before it runs."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Dense bfloat16 operations a second, from the vendors' data sheets (two to a multiply-add, no sparsity).
_PEAK_OPERATIONS = {
    "A100": 312e12,
    "H100": 989e12,  # SXM
    "H200": 989e12,
    "B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # how a v5p names itself
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}


def peak_operations(device_kind: str) -> float | None:
    """Dense bfloat16 operations a second that a device can make at most, by its `device_kind`; None if unknown."""
    return next((peak for name, peak in _PEAK_OPERATIONS.items() if name in device_kind), None)


def multiply_adds(function: Callable, *args: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in `function(*args)`.

    A scan counts as often as it iterates, a `cond` as its dearest branch. Papers that call a multiply-add
    one "FLOP" report this number; hardware vendors report twice as much.

    Args:
        args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: a loop with products inside iterates a number of times that is known only at run time.
    """
    return _count(jax.make_jaxpr(function)(*args))


def _count(closed_jaxpr: Any) -> int:
    jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        per_output = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        zeros_between = math.prod(params["lhs_dilation"])  # of a transposed convolution; they cost nothing
        return equation.outvars[0].aval.size * per_output // zeros_between

    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "a while loop holds matrix products, and how often it iterates is unknown before it runs; "
            "use `jax.lax.scan` or a `fori_loop` with Python integers as bounds"
        )
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns"):
                yield part
