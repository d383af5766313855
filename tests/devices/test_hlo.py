"""Test the reader of XLA's programs on a TPU's program, written by hand, and on the CPU's."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from genjax.devices.hlo import Array, read


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (Array("f32", (32, 96)), 12288),
        (Array("bf16", (8,)), 16),
        (Array("pred", (3,)), 3),
        (Array("f32", ()), 4),
        (Array("s64", (2,)), 16),
        (Array("s4", (6,)), 3),
        (Array("f8e4m3fn", (6,)), 6),
    ],
)
def test_bytes_of_an_array(array, size):
    assert array.bytes == size and array.padded_bytes == size and array.in_main_memory


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((64, 16, 256, 72), "3,2,1,0:T(8,128)(2,1)", 2 * 64 * 16 * 256 * 128),
        ((64, 16, 256, 72), "2,3,1,0:T(8,128)(2,1)", 2 * 64 * 16 * 256 * 72),
        ((3, 5), "1,0:T(8,128)(2,1)", 2 * 8 * 128),
        ((3, 5), "1,0:T(4,128)(2,1)", 2 * 4 * 128),
        ((1152,), "0:T(1024)(128)(2,1)", 2 * 2048),
        ((), ":T(128)", 2 * 128),
    ],
)
def test_tiles_pad_the_fastest_dimensions(shape, layout, size):
    assert Array("bf16", shape, layout).padded_bytes == size


@pytest.mark.parametrize(
    ("memory", "main"), [("", True), ("S(0)", True), ("S(1)", False), ("S(2)", False)]
)
def test_memory_on_the_chip(memory, main):
    assert Array("f32", (8, 128), f"1,0:T(8,128){memory}").in_main_memory == main


KERNEL = """
HloModule jit_f

%branch (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}

ENTRY %main (x: f32[8]) -> (f32[8], f32[8]) {
  %x = f32[8]{0:T(128)} parameter(0)
  %kernel = (f32[8]{0:T(128)}, /*index=1*/f32[8]{0:T(128)S(1)}) \
custom-call(%x, /*index=1*/%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"block": 8
}}, metadata={op_name="kernel"}
  %conditional = f32[8]{0} conditional(%p, %x, %x), branch_computations={%branch, %other}
  ROOT %tuple = (f32[8]{0}, f32[8]{0}) tuple(%x, %conditional)
}

%other (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %negate = f32[8]{0} negate(%b)
}
"""


def test_an_operation_over_several_lines_and_branches():
    program = read(KERNEL)
    kernel = program.computations["main"]["kernel"]
    assert (kernel.opcode, kernel.operands) == ("custom-call", ("x", "x"))
    assert kernel.results == (Array("f32", (8,), "0:T(128)"), Array("f32", (8,), "0:T(128)S(1)"))
    assert kernel.attributes.endswith('}}, metadata={op_name="kernel"}')
    assert [(operation.name, times) for operation, _, times in program.runs()] == [
        *[
            ("x", 1),
            ("kernel", 1),
            ("conditional", 1),
            ("a", 1),
            ("b", 1),
            ("negate", 1),
            ("tuple", 1),
        ]
    ]


@pytest.fixture(scope="module")
def loops():
    """Compile a scan of scans with 5 × 3 products, and a loop that runs until a sum exceeds 1.

    Returns the program as read, and the line where its function begins.
    """

    def nested(x, matrix):
        inner = lambda x, _: (jnp.tanh(x @ matrix), None)
        outer = lambda x, _: (jax.lax.scan(inner, x, length=3)[0], None)
        return jax.lax.while_loop(
            lambda x: jnp.sum(x) < 1, lambda x: 2 * x, jax.lax.scan(outer, x, length=5)[0]
        )

    text = jax.jit(nested).lower(jnp.ones((8, 16)), jnp.ones((16, 16))).compile().as_text()
    return read(text), inspect.getsourcelines(nested)[1]


def test_loops_multiply(loops):
    program, _ = loops
    times = {
        inner.opcode: times
        for operation, _, times in program.runs()
        for inner in program.inside(operation)
    }
    assert times["dot"] == times["tanh"] == 15
    assert times["multiply"] is None  # the length of this loop is unknown


def test_operations_know_their_line(loops):
    program, first = loops
    sources = {
        inner.opcode: program.source_of(computation, operation)
        for operation, computation, _ in program.runs()
        for inner in program.inside(operation)
    }
    line, name = sources["dot"]
    assert line == f"tests/devices/test_hlo.py:{first + 1}"
    assert name.startswith("jit(nested)/") and name.endswith("/dot_general")


TRACED = """
HloModule jit_f

FileNames
1 "/lib/site-packages/flax/linen/linear.py"
2 "/home/me/network.py"

FunctionNames
1 "Dense.__call__"
2 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=40 end_line=41 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=1 parent_frame_id=1}


ENTRY %main (x: f32[8,9]) -> f32[8,9] {
  %x = f32[8,9]{1,0} parameter(0)
  %copy = f32[8,9]{0,1} copy(%x)
  %bitcast = f32[9,8]{1,0} bitcast(%copy)
  %negate = f32[9,8]{1,0} negate(%bitcast), metadata={op_name="jit(f)/neg" stack_frame_id=2}
  %abs = f32[9,8]{1,0} abs(%negate), metadata={op_name="jit(f)/abs" stack_frame_id=3}
  %last = f32[9,8]{0,1} copy(%abs)
  ROOT %out = f32[8,9]{1,0} bitcast(%last)
}
"""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("negate", ("/home/me/network.py:40", "jit(f)/neg")),  # the caller's line, not flax's
        ("abs", ("flax/linen/linear.py:3", "jit(f)/abs")),  # there is no line outside flax
        ("copy", ("/home/me/network.py:40", "jit(f)/neg")),  # line of the operation that reads it
        ("last", ("flax/linen/linear.py:3", "jit(f)/abs")),  # line of the operation that made it
    ],
)
def test_lines_are_of_code_outside_libraries_and_copies_have_their_neighbours(name, source):
    program = read(TRACED)
    main = program.computations["main"]
    assert program.source_of(main, main[name]) == source
