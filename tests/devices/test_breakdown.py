"""Test the costs of operations against a TPU program counted by hand, and against XLA's counts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from genjax.devices.breakdown import breakdown, costs_of
from genjax.devices.collectives import Collective, collectives
from genjax.devices.specifications import DEVICES

# A matrix has 1,024 × 256 numbers in bfloat16: 512 KiB, which tiles do not pad. Each layer has one.
MATRIX = 2 * 1024 * 256
SCALAR = 4 * 128  # bytes; a tile pads a scalar to 128 numbers
PROGRAM = """
HloModule jit_step, is_scheduled=true

%slice (p0: bf16[4,1024,256], p1: s32[]) -> bf16[256,1024] {
  %p0 = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %dynamic-slice = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} \
dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,1024,256}
  %view = bf16[1024,256]{1,0:T(8,128)(2,1)} bitcast(%dynamic-slice)
  ROOT %turned = bf16[256,1024]{1,0:T(8,128)(2,1)} transpose(%view), dimensions={1,0}
}

%turn (t: bf16[1024,256]) -> bf16[1024,256] {
  %t = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %copy = bf16[1024,256]{0,1:T(8,128)(2,1)} copy(%t)
}

%product (a: bf16[1024,256], b: bf16[256,1024]) -> bf16[1024,1024] {
  %a = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution = bf16[1024,1024]{1,0:T(8,128)(2,1)} \
convolution(%a, %b), dim_labels=bf_io->bf
}

%update (c: bf16[4,1024,256], d: bf16[1,1024,256], e: s32[]) -> (bf16[4,1024,256], f32[]) {
  %c = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %d = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %e = s32[]{:T(128)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  %tanh = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} tanh(%d)
  %stacked = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} \
dynamic-update-slice(%c, %tanh, %e, %none, %none)
  %sum = f32[]{:T(128)} reduce(%tanh, %none), dimensions={0,1,2}, to_apply=%add
  ROOT %both = (bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, f32[]{:T(128)}) tuple(%stacked, %sum)
}

%body (state: (s32[], bf16[4,1024,256], bf16[1024,256])) -> \
(s32[], bf16[4,1024,256], bf16[1024,256]) {
  %state = (s32[]{:T(128)}, bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %x = bf16[1024,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %weights = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} \
fusion(%stack, %i), kind=kLoop, calls=%slice, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %h = bf16[1024,1024]{1,0:T(8,128)(2,1)} \
fusion(%x, %weights), kind=kOutput, calls=%product, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %part = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} slice(%h), slice={[0:1], [0:1024], [0:256]}
  %both.1 = (bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, f32[]{:T(128)}) \
fusion(%stack, %part, %i), kind=kLoop, calls=%update
  %stack.1 = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%both.1), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) tuple(%next, %stack.1, %x)
}

%condition (at: (s32[], bf16[4,1024,256], bf16[1024,256])) -> pred[] {
  %at = (s32[]{:T(128)}, bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %now = s32[]{:T(128)} get-tuple-element(%at), index=0
  %end = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(128)} compare(%now, %end), direction=LT
}

ENTRY %main (arg0: bf16[4,1024,256], arg1: bf16[1024,256]) -> bf16[1024,256] {
  %arg0 = bf16[4,1024,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %arg1 = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(1)
  %buffer = bf16[1024,256]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %first = s32[]{:T(128)} constant(0)
  %copy-start = (bf16[1024,256]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,256]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%arg1)
  %begin = (s32[]{:T(128)}, bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) tuple(%first, %arg0, %arg1)
  %while = (s32[]{:T(128)}, bf16[4,1024,256]{2,1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) while(%begin), condition=%condition, body=%body
  %copy-done = bf16[1024,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %kernel = bf16[1024,256]{1,0:T(8,128)(2,1)} custom-call(%arg1, %copy-done), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 8
}}
  %sent = bf16[1024,256]{1,0:T(8,128)(2,1)} all-reduce(%kernel), replica_groups={}, to_apply=%add
  ROOT %result = bf16[1024,256]{0,1:T(8,128)(2,1)} fusion(%sent), kind=kLoop, calls=%turn
}
"""
# Weights are gathered from four devices while x is multiplied by others.
BESIDE = """HloModule beside
%starting (from: bf16[256,256]) -> (bf16[256,256], bf16[1024,256], u32[]) {
  %from = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %whole = bf16[1024,256]{1,0:T(8,128)(2,1)} all-gather(%from), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %begun = (bf16[256,256]{1,0:T(8,128)(2,1)}, bf16[1024,256]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) custom-call(%from, %whole), custom_call_target="AsyncCollectiveStart"
}

%going_on (a: bf16[1024,1024], b: bf16[1024,256], from: bf16[256,256], to: bf16[1024,256]) -> \
(bf16[1024,256], bf16[256,256], bf16[1024,256]) {
  %a = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(1)
  %from = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(2)
  %to = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(3)
  %ab = bf16[1024,256]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
  %whole = bf16[1024,256]{1,0:T(8,128)(2,1)} all-gather(%from), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %both = (bf16[1024,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) tuple(%ab, %from, %to)
}

%ending (from: bf16[256,256], to: bf16[1024,256]) -> bf16[1024,256] {
  %from = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %to = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(1)
  %whole = bf16[1024,256]{1,0:T(8,128)(2,1)} all-gather(%from), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %ended = bf16[1024,256]{1,0:T(8,128)(2,1)} custom-call(%from, %to, %whole), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (shard: bf16[256,256], a: bf16[1024,1024], b: bf16[1024,256]) -> bf16[1024,256] {
  %shard = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %a = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %b = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(2)
  %start = (bf16[256,256]{1,0:T(8,128)(2,1)}, bf16[1024,256]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) fusion(%shard), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, \
calls=%starting
  %from.0 = bf16[256,256]{1,0:T(8,128)(2,1)} get-tuple-element(%start), index=0
  %to.0 = bf16[1024,256]{1,0:T(8,128)(2,1)} get-tuple-element(%start), index=1
  %step = (bf16[1024,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}, \
bf16[1024,256]{1,0:T(8,128)(2,1)}) fusion(%a, %b, %from.0, %to.0), kind=kOutput, \
output_to_operand_aliasing={{1}: (2, {}), {2}: (3, {})}, calls=%going_on
  %from.1 = bf16[256,256]{1,0:T(8,128)(2,1)} get-tuple-element(%step), index=1
  %to.1 = bf16[1024,256]{1,0:T(8,128)(2,1)} get-tuple-element(%step), index=2
  ROOT %end = bf16[1024,256]{1,0:T(8,128)(2,1)} fusion(%from.1, %to.1), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%ending
}
"""


@pytest.fixture(scope="module")
def found():
    return breakdown(SimpleNamespace(as_text=lambda: PROGRAM), DEVICES["v5p"], most_expensive=3)


@pytest.mark.parametrize(
    ("category", "runs", "matrices", "scalars", "cycles"),
    [
        # Four iterations read a layer, transpose it and keep it on the chip. They also read and
        # write a quarter of h. One more copy ends the program.
        ("layout changes", 4 + 4 + 1, 4 * 1 + 4 * 2 + 2, 4, 400),
        # A product reads x and writes h, which is four times as large. Weights are on the chip.
        ("products", 4, 4 * (1 + 4), 0, 4000),
        # An iteration reads a layer, updates it in place and sums it. The counter is on the chip.
        ("elementwise", 4 + 4, 4 * 2, 4 * (2 + 2), 0),
        ("kernels", 1, 2, 0, 0),  # one of three arrays is on the chip
        ("collectives", 1, 2, 0, 0),
        ("asynchronous copies", 1, 1, 0, 0),
    ],
)
def test_categories_by_hand(found, category, runs, matrices, scalars, cycles):
    row = found["categories"][category]
    assert (row["runs"], row["cycles"]) == (runs, cycles)
    assert row["bytes"] == matrices * MATRIX + scalars * SCALAR


def test_a_gather_beside_a_product_counts_once():
    """The gather reads a quarter of a matrix and writes a whole one.

    The product reads one of four matrices' size and one more, and writes one.
    """
    compiled = SimpleNamespace(as_text=lambda: BESIDE)
    rows = breakdown(compiled, DEVICES["v5p"])["categories"]
    assert {name: (row["runs"], row["bytes"] / MATRIX) for name, row in rows.items()} == {
        "products": (1, 4 + 1 + 1),
        "collectives": (1, 1 / 4 + 1),
    }
    assert rows["products"]["operations"] == 2 * 1024 * 1024 * 256
    shapes = {cost.category: cost.shapes for cost in costs_of(compiled, DEVICES["v5p"])}
    assert shapes == dict.fromkeys(("collectives", "products"), "bf16[1024,256]")
    (found,) = collectives(compiled, AbstractMesh((4,), ("fsdp",)))
    assert found == Collective("all-gather", ("fsdp",), 1, MATRIX)


def test_the_bound_is_the_larger_of_products_and_bytes(found):
    """On a v5p, 20 matrices take 3.8 µs of memory time, and 2.1 billion operations take 4.7 µs."""
    products = found["categories"]["products"]
    assert products["operations"] == 4 * 2 * 1024 * 256 * 1024 == found["total"]["operations"]
    assert products["seconds"] == pytest.approx(products["operations"] / 459e12)
    slow = DEVICES["v5p"]._replace(bandwidth=1e12)
    by_memory = breakdown(SimpleNamespace(as_text=lambda: PROGRAM), slow)
    assert by_memory["categories"]["products"]["seconds"] == pytest.approx(20 * MATRIX / 1e12)
    seconds = [row["seconds"] for row in found["categories"].values()]
    assert found["total"]["seconds"] == pytest.approx(sum(seconds))


def test_the_most_expensive_come_first(found):
    rows = found["most_expensive"]
    assert [row["category"] for row in rows] == ["products", "elementwise", "layout changes"]
    assert (rows[0]["opcode"], rows[0]["shapes"], rows[0]["runs"]) == (
        "fusion",
        "bf16[1024,1024]",
        4,
    )


def test_equal_operations_of_one_line_share_a_row():
    def layers(x):
        for _ in range(3):
            x = jnp.sort(x, axis=-1)[::-1]
        return x

    compiled = jax.jit(layers).lower(jnp.ones((32, 64))).compile()
    rows = breakdown(compiled, DEVICES["v5p"])["most_expensive"]
    (row,) = [row for row in rows if "sort" in row["name"] and row["category"] == "other"]
    assert (row["count"], row["runs"], row["shapes"]) == (3, 3, "f32[32,64]")
    assert row["line"].startswith("tests/devices/test_breakdown.py:")


def test_a_loop_of_unknown_length_has_no_cost():
    program = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0] < 1, lambda x: 2 * x, x))
    with pytest.raises(ValueError, match="loop of unknown length"):
        costs_of(program.lower(jnp.ones(3)).compile(), DEVICES["v5p"])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(window_strides=(2, 1)),
        dict(padding="VALID"),
        dict(feature_group_count=3),
        dict(lhs_dilation=(2, 3), padding=((1, 2), (0, 2))),
        dict(rhs_dilation=(2, 1), padding=((2, 2), (5, -1))),
    ],
)
def test_products_are_those_that_xla_counts(options):
    """XLA leaves out products with padding and with zeros between the inputs."""
    groups = options.get("feature_group_count", 1)
    arguments = dict(window_strides=(1, 1), padding="SAME") | options
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, dimension_numbers=numbers, **arguments
    )
    arrays = jnp.ones((2, 8, 7, 6)), jnp.ones((3, 3, 6 // groups, 12))
    compiled = jax.jit(convolve).lower(*arrays).compile()
    counted = sum(cost.operations for cost in costs_of(compiled, DEVICES["v5p"]))
    assert counted == compiled.cost_analysis()["flops"]


def test_products_of_matrices_in_loops():
    def layers(x, matrices):
        return jax.lax.scan(
            lambda x, matrix: (jnp.einsum("hbi,hij->hbj", x, matrix), None), x, matrices
        )[0]

    compiled = jax.jit(layers).lower(jnp.ones((3, 8, 16)), jnp.ones((5, 3, 16, 16))).compile()
    counted = sum(cost.operations for cost in costs_of(compiled, DEVICES["v5p"]))
    assert counted == 5 * 3 * 2 * 8 * 16 * 16
