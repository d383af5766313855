import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import Dense


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
