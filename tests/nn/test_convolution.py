import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.convolution import (
    _enlarged_by_phases,
    _enlarged_by_zeros,
    convolve,
    convolve_enlarged,
)

LAYOUT = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain(x, kernel, padding="SAME"):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, **LAYOUT)


def arrays(side, height=34, width=32):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dx = (jax.random.normal(key, (2, height, width, 64)) for key in keys[:2])
    kernel, dkernel = (jax.random.normal(key, (side, side, 64, 72)) for key in keys[2:])
    return (x, kernel), (dx, dkernel)


def wide(function, *args):
    """Compute in float64, whose rounding errors are negligible here."""
    with jax.enable_x64(True):
        return jax.jit(function)(*jax.tree.map(lambda a: np.asarray(a, np.float64), args))


def close(found, expected):
    # Float32 sums of 2·34·32 or 9·64 products of about 1, summed in blocks, differ by a few
    # roundings of the largest value.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize(
    ("side", "padding"), [(3, "SAME"), (2, ((1, 0), (0, 1))), (5, "VALID"), (4, "SAME")]
)
def test_derivatives_are_the_convolution_s(side, padding):
    primals, tangents = arrays(side)
    ours = lambda x, kernel: convolve(x, kernel, (1, 1), padding, **LAYOUT)
    theirs = functools.partial(plain, padding=padding)
    both_ways = lambda f, primals, tangents: (
        jax.jvp(f, primals, tangents),
        jax.vjp(f, *primals)[1](f(*tangents)),
    )
    close(
        jax.jit(functools.partial(both_ways, ours))(primals, tangents),
        wide(functools.partial(both_ways, theirs), primals, tangents),
    )


def test_second_derivatives_are_the_convolution_s():
    """A gradient penalty needs second derivatives."""
    (x, kernel), _ = arrays(3)

    def penalty(f, x, kernel):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(f(x, kernel) / 30)))(x) ** 2)

    ours = lambda x, kernel: convolve(x, kernel, (1, 1), "SAME", **LAYOUT)
    gradients = [jax.grad(functools.partial(penalty, f), argnums=(0, 1)) for f in (ours, plain)]
    close(jax.jit(gradients[0])(x, kernel), wide(gradients[1], x, kernel))


def lowered(function, platform, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_no_other_platform_sees_the_strips(argnums):
    """Other platforms have the convolutions of JAX's own derivative, and no loop.

    On CPUs a loop replaces the convolution of the kernel's gradient only.
    """
    (x, kernel), _ = arrays(3)
    ours = lambda x, kernel: convolve(x, kernel, (1, 1), "SAME", **LAYOUT)
    gradients = [jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums) for f in (ours, plain)]
    count = lambda text: (text.count("stablehlo.convolution"), text.count("stablehlo.while"))
    for platform in ("tpu", "cuda"):
        found, expected = (count(lowered(f, platform, x, kernel)) for f in gradients)
        assert found == expected == (2 + (argnums == (0, 1)), 0)
    assert (
        count(lowered(gradients[0], "cpu", x, kernel))
        == {0: (2, 0), 1: (1, 1), (0, 1): (2, 1)}[argnums]
    )


def test_strips_keep_no_neighbours():
    """The forward pass keeps only its arguments for the backward pass, as JAX's own does."""
    (x, kernel), _ = arrays(3)
    _, pullback = jax.vjp(
        lambda x, kernel: convolve(x, kernel, (1, 1), "SAME", **LAYOUT), x, kernel
    )
    kept = {leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size > 1}
    assert kept <= {x.shape, kernel.shape}


@pytest.mark.parametrize(("devices", "strips"), [(1, True), (8, False)])
def test_meshes_of_several_devices_have_the_convolution(devices, strips):
    """Several devices split the examples, but could not split a loop over rows in this way."""
    (x, kernel), _ = arrays(3)
    mesh = jax.sharding.AbstractMesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        gradient = jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, (1, 1), "SAME", **LAYOUT)))
        assert ("scan" in str(jax.make_jaxpr(gradient)(kernel))) == strips


@pytest.mark.parametrize("form", [_enlarged_by_phases, _enlarged_by_zeros])
@pytest.mark.parametrize("features", [3, 64])
def test_enlarged(features, form):
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = (
        jax.random.normal(keys[0], (2, 5, 32, features)),
        jax.random.normal(keys[1], (3, 3, features, 65)),
    )
    x = jnp.tile(x, (1, 7, 1, 1)) if features == 64 else x  # enough rows for strips
    theirs = lambda x, kernel: plain(x.repeat(2, axis=1).repeat(2, axis=2), kernel)
    ours = functools.partial(form, **LAYOUT)

    def value_and_gradients(f, x, kernel, cotangent):
        y, pullback = jax.vjp(f, x, kernel)
        return y, pullback(cotangent)

    args = x, kernel, jax.random.normal(keys[0], (2, 2 * x.shape[1], 64, 65))
    close(
        jax.jit(functools.partial(value_and_gradients, ours))(*args),
        wide(functools.partial(value_and_gradients, theirs), *args),
    )


def test_enlarged_takes_four_ninths_of_the_operations():
    x, kernel = jnp.zeros((1, 16, 16, 8)), jnp.zeros((3, 3, 8, 8))
    ours = lambda x, kernel: convolve_enlarged(x, kernel, (1, 1), "VALID_IS_NOT_READ", **LAYOUT)
    text = lowered(ours, "cpu", x, kernel)
    assert text.count("stablehlo.convolution") == 4 and text.count("tensor<2x2x8x8xf32>") >= 4
    on_tpus = lowered(ours, "tpu", x, kernel)
    assert on_tpus.count("stablehlo.convolution") == 1
    assert "lhs_dilate = [2, 2]" in on_tpus and "tensor<4x4x8x8xf32>" in on_tpus


def test_flax_layers_take_both():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 4))
    for function, side in ((convolve, 6), (convolve_enlarged, 12)):
        layer = nn.Conv(5, (3, 3), conv_general_dilated=function)
        variables = layer.init(jax.random.key(1), x)
        given = x if function is convolve else x.repeat(2, axis=1).repeat(2, axis=2)
        expected = nn.Conv(5, (3, 3)).apply(variables, given)
        np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)
        assert expected.shape == (1, side, side, 5)
