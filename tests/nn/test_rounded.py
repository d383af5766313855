import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.attention.dispatch import forward_mode
from genjax.nn.dense import Dense, QueryKeyValue, float32_product
from genjax.nn.rounded import rounded_product


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def rounded(a):
    """Return the nearest numbers of bfloat16 in double precision."""
    return np.float64(np.asarray(a, jnp.bfloat16))


def assert_equal(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)  # sums of 96 float32 terms


def test_factors_are_rounded_and_sums_are_not():
    x, kernel, gradient = normal(0, 80, 48), normal(1, 48, 96), normal(2, 80, 96)
    result, pull = jax.vjp(rounded_product, x, kernel)
    by_x, by_kernel = pull(gradient)
    assert_equal(result, rounded(x) @ rounded(kernel))
    assert_equal(by_x, rounded(gradient) @ rounded(kernel).T)
    assert_equal(by_kernel, rounded(x).T @ rounded(gradient))
    assert abs(result - x @ kernel).max() > 1e-2  # the rounding is seen


def test_it_is_mapped_over_examples():
    x, kernel = normal(0, 3, 8, 16), normal(1, 16, 4)
    loss = lambda x, kernel: (rounded_product(x, kernel) ** 2).sum()
    gradient = jax.grad(loss, 1)
    mapped = jax.jit(jax.vmap(gradient, (0, None)))(x, kernel)
    assert_equal(mapped, jnp.stack([gradient(a, kernel) for a in x]))


@pytest.mark.parametrize(
    "layer",
    [Dense(6, use_bias=False), QueryKeyValue(6, use_bias=False, num_heads=2, dtype=jnp.float32)],
)
def test_layers_round_where_the_option_of_jax_asks(layer):
    x = normal(0, 2, 5, 8)
    params = layer.init(jax.random.key(0), x)
    near = jax.tree.map(jnp.float32, jax.tree.map(jnp.bfloat16, params))
    exact, nearest = layer.apply(params, x), layer.apply(near, jnp.float32(jnp.bfloat16(x)))
    apply = jax.jit(lambda x: layer.apply(params, x))
    with jax.default_matmul_precision("bfloat16"):
        jax.tree.map(assert_equal, apply(x), nearest)
        with forward_mode(True):  # jax.jvp asks for it
            value, _ = jax.jvp(apply, (x,), (x,))
    jax.tree.map(assert_equal, value, exact)
    jax.tree.map(assert_equal, apply(x), exact)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), exact, nearest))) > 1e-3


def test_a_layer_with_a_precision_of_its_own_keeps_it():
    layer, x = Dense(6, precision="highest"), normal(0, 2, 8)
    params = layer.init(jax.random.key(0), x)
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(layer.apply(params, x), x @ params["params"]["kernel"])


def test_logits_of_bfloat16_stay_float32():
    layer = Dense(6, dtype=jnp.bfloat16, dot_general=float32_product)
    x = normal(0, 2, 8)
    params = layer.init(jax.random.key(0), x)
    with jax.default_matmul_precision("bfloat16"):
        logits = layer.apply(params, x)
    np.testing.assert_array_equal(logits, layer.apply(params, x))
    assert logits.dtype == jnp.float32
