import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from genjax.devices.cost import multiply_adds, multiply_adds_written
from genjax.models.transformers.dit import DiT_B, DiT_L, DiT_S, DiT_XL
from genjax.nn import attention, attention_choices

VECTOR = jax.ShapeDtypeStruct((5,), jnp.float32)
MATRIX = jax.ShapeDtypeStruct((5, 5), jnp.float32)


def product(matrix, vector):
    return jnp.tanh(matrix @ vector)  # 25 multiply-adds


def test_products_count_batch_rows_columns_and_contracted():
    a = jax.ShapeDtypeStruct((2, 3, 4, 5), jnp.bfloat16)
    b = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.bfloat16)
    assert (
        multiply_adds(lambda a, b: jnp.einsum("bhqf,bfhk->bhqk", a, b), a, b) == 2 * 3 * 4 * 5 * 7
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), 2 * 8 * 8 * 12 * 3 * 3 * 6),
        (dict(window_strides=(2, 2)), 2 * 4 * 4 * 12 * 3 * 3 * 6),
        (dict(feature_group_count=3), 2 * 8 * 8 * 12 * 3 * 3 * 2),
        # Upsampling by 2: each of the 8×8 inputs meets each of the 3×3 weights.
        (dict(lhs_dilation=(2, 2), padding=((1, 2), (1, 2))), 2 * 8 * 8 * 6 * 3 * 3 * 12),
    ],
)
def test_convolutions(options, expected):
    groups = options.get("feature_group_count", 1)
    images = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 6 // groups, 12), jnp.float32)

    def convolve(images, kernel):
        arguments = dict(window_strides=(1, 1), padding="SAME") | options
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, dimension_numbers=numbers, **arguments)

    assert multiply_adds(convolve, images, kernel) == expected


def test_convolution_counts_each_weight_once_per_output_whatever_the_layout():
    images = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((12, 6, 3), jnp.float32)
    count = multiply_adds(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
        ),
        images,
        kernel,
    )
    assert count == 2 * 8 * 12 * 6 * 3


def test_scan_counts_every_iteration_and_nested_ones_multiply():
    def scanned(matrix, vector, length):
        return jax.lax.scan(lambda v, _: (product(matrix, v), None), vector, length=length)[0]

    def nested(matrix, vector):
        return jax.lax.scan(lambda v, _: (scanned(matrix, v, 7), None), vector, length=3)[0]

    assert multiply_adds(lambda m, v: scanned(m, v, 4), MATRIX, VECTOR) == 4 * 25
    assert multiply_adds(nested, MATRIX, VECTOR) == 3 * 7 * 25


def test_nested_jit_and_custom_derivatives_are_entered():
    inner = jax.jit(product)
    custom = jax.custom_jvp(product)
    custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[1]))
    outer = jax.jit(lambda m, v: inner(m, inner(m, v)) + custom(m, v))
    assert multiply_adds(outer, MATRIX, VECTOR) == 3 * 25


def test_remat_computes_forward_again():
    def loss(step):
        return lambda matrix, vector: jnp.sum(step(matrix, step(matrix, vector)))

    gradient = lambda step: jax.value_and_grad(loss(step), argnums=(0, 1))
    # There are two products forward. Backward there are two for the matrix and two for the vectors.
    # Rematerialisation adds the two forward products again.
    assert multiply_adds(loss(product), MATRIX, VECTOR) == 2 * 25
    assert multiply_adds(gradient(product), MATRIX, VECTOR) == 6 * 25
    assert multiply_adds(gradient(jax.checkpoint(product)), MATRIX, VECTOR) == 8 * 25


def test_what_no_result_depends_on_costs_nothing():
    def one_of_three(matrix, vector):
        both = jax.jit(lambda m, v: (product(m, v), product(m, 2 * v)))
        return both(matrix, vector)[0] + 0 * product(matrix, vector).size

    assert multiply_adds(one_of_three, MATRIX, VECTOR) == 25
    # The gradient alone needs no last product forward, as the backward pass computes it again.
    again = jax.checkpoint(product)
    gradient = jax.grad(lambda m, v: jnp.sum(again(m, v)), argnums=(0, 1))
    assert multiply_adds(gradient, MATRIX, VECTOR) == 3 * 25


@pytest.mark.parametrize(
    ("form", "platform", "heads", "axes"),
    [
        ("all_to_all", "cpu", 8, dict(context=8)),
        ("ring", "cpu", 6, dict(data=2, context=4)),  # 6 heads do not divide
        # This machine has no such kernel, so the count is that of chunks in its place.
        ("short", "tpu", 8, dict(data=2, tensor=4)),
    ],
)
def test_what_devices_share_is_counted_of_all(form, platform, heads, axes):
    """Attention has two products, whether one device computes them or eight."""
    arrays = 3 * [jax.ShapeDtypeStruct((2, 1024, heads, 16), jnp.bfloat16)]
    for sizes in (axes, dict(data=1)):
        types = (AxisType.Auto,) * len(sizes)
        device = AbstractDevice("", 1, platform)
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), types, abstract_device=device)
        with use_abstract_mesh(mesh), attention_choices() as choices:
            assert multiply_adds(attention, *arrays) == 2 * 2 * heads * 1024**2 * 16
        assert sizes is not axes or form in {choice.form for choice in choices}


@pytest.mark.parametrize("length, unroll", [(6, 1), (6, 2), (7, 3), (3, 3), (2, 5), (1, 1)])
def test_products_are_written_as_often_as_xla_counts_them(length, unroll):
    def scanned(matrix, vector):
        step = lambda v, _: (matrix @ v, None)
        return jax.lax.scan(step, vector, length=length, unroll=unroll)[0]

    # In the lowered program XLA counts two operations a multiply-add. It adds a few for the loop's
    # counter.
    xla = jax.jit(scanned).lower(MATRIX, VECTOR).cost_analysis()["flops"]
    assert multiply_adds_written(scanned, MATRIX, VECTOR) * 2 == pytest.approx(xla, abs=10)
    assert multiply_adds(scanned, MATRIX, VECTOR) == length * 25


def test_cond_counts_its_dearest_branch():
    def branch(matrix, vector):
        once = functools.partial(product, matrix)
        return jax.lax.cond(vector[0] > 0, once, lambda vector: once(once(vector)), vector)

    assert multiply_adds(branch, MATRIX, VECTOR) == 2 * 25


def test_loops_of_unknown_length_are_refused_unless_they_cost_nothing():
    def doubling(step):
        return lambda m, v: jax.lax.while_loop(lambda v: jnp.sum(v) < 1, lambda v: step(m, v), v)

    assert multiply_adds(doubling(lambda m, v: 2 * v), MATRIX, VECTOR) == 0
    with pytest.raises(ValueError, match="how often it iterates"):
        multiply_adds(doubling(product), MATRIX, VECTOR)


@pytest.mark.parametrize(
    "build, printed", [(DiT_S, 6.056), (DiT_B, 23.005), (DiT_L, 80.697), (DiT_XL, 118.62)]
)
def test_dit_multiply_adds(build, printed):
    network = build(out_channels=8)
    arguments = (
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    params = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    count = multiply_adds(network.apply, params, *arguments)

    tokens, width, depth = 256, network.width, network.depth
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2
    ends = tokens * width * (16 + 32) + 2 * width**2 + 256 * width + width**2
    assert count == depth * block + ends
    # The tolerance is one unit of the last of five digits, because the table truncates: L/2 is
    # 80.6976.
    assert count / 1e9 == pytest.approx(printed, abs=1e-3 if printed < 100 else 1e-2)
