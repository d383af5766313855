import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import Dense, dense
from genjax.nn.dense import in_token_loop


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_same_parameters_and_outputs_as_flax(shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    options = dict(kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal())
    ours, theirs = Dense(7, **options), nn.Dense(7, **options)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(0), x))
    output = ours.apply(params, x)
    assert output.shape == (*shape[:-1], 7)
    np.testing.assert_allclose(
        output, theirs.apply(params, x), rtol=1e-6, atol=1e-6
    )  # sums of five terms


def test_types():
    layer = Dense(7, dtype=jnp.bfloat16)
    output, params = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((2, 3, 5)))
    assert output.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("features", "products"), [(6, "2x3x7"), (5, "5x7")])
def test_one_row_in_a_loop_over_tokens_is_a_sum_of_two_products(features, products):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, features)), jnp.float32)
    layer = Dense(7, bias_init=nn.initializers.normal())
    params = layer.init(jax.random.key(0), x)
    apply = jax.jit(layer.apply)
    expected = apply(params, x)
    with in_token_loop(True):
        # Two sums of three terms in place of one of six.
        np.testing.assert_allclose(apply(params, x), expected, rtol=1e-6, atol=1e-6)
        assert f"tensor<{products}xf32>) -> tensor" in _product_of(apply, params, x)


def test_a_row_that_keeps_its_dimensions_is_one_product(monkeypatch):
    """Tokens that are split over devices are not joined with examples to one dimension."""
    monkeypatch.setattr(dense, "context_size", lambda: 2)
    x, layer = jnp.ones((1, 1, 6)), Dense(7)
    params = layer.init(jax.random.key(0), x)
    with in_token_loop(True):
        output = layer.apply(params, x)
    np.testing.assert_allclose(output, layer.apply(params, x), rtol=1e-6, strict=True)


def _product_of(function, *args) -> str:
    (line,) = (line for line in function.lower(*args).as_text().splitlines() if "dot_gen" in line)
    return line
