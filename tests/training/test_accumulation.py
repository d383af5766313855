import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training import value_and_gradient


def loss(params, batch, key):
    error = jnp.tanh(batch["x"] @ params["w"]) - batch["y"]
    return jnp.mean(error**2), {"worst": jnp.max(jnp.abs(error))}


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    params = {"w": random.standard_normal((5, 3)).astype(np.float32)}
    batch = {"x": random.standard_normal((12, 5)), "y": random.standard_normal((12, 3))}
    return params, jax.tree.map(lambda a: a.astype(np.float32), batch), jax.random.key(0)


@pytest.mark.parametrize("num_microbatches", [2, 3, 12])
def test_mean_over_microbatches_is_the_whole_batch(problem, num_microbatches):
    (value, _), gradients = jax.jit(value_and_gradient(loss, num_microbatches))(*problem)
    (expected, _), expected_gradients = jax.value_and_grad(loss, has_aux=True)(*problem)
    np.testing.assert_allclose(value, expected, rtol=1e-6)  # float32 sums in another order
    np.testing.assert_allclose(gradients["w"], expected_gradients["w"], rtol=1e-5, atol=1e-7)


def test_each_microbatch_has_its_own_examples_and_key(problem):
    def draw(params, batch, key):
        return jnp.sum(params["w"]), (batch["index"], jax.random.normal(key))

    params, _, key = problem
    batch = {"index": jnp.arange(12.0)}
    (_, (mean_index, mean_draw)), _ = value_and_gradient(draw, 3)(params, batch, key)
    parts = np.arange(12.0).reshape(4, 3).T
    draws = [jax.random.normal(each) for each in jax.random.split(key, 3)]
    np.testing.assert_allclose(mean_index, parts.mean(0), rtol=1e-6)
    np.testing.assert_allclose(mean_draw, np.mean(draws), atol=2e-7)  # float32, of draws near 1


def test_one_microbatch_is_the_plain_gradient(problem):
    found = value_and_gradient(loss)(*problem)
    jax.tree.map(
        np.testing.assert_array_equal, found, jax.value_and_grad(loss, has_aux=True)(*problem)
    )


def test_memory_falls_with_the_microbatch():
    def loss(params, batch, key):
        hidden = batch["x"]
        for _ in range(4):
            hidden = jnp.tanh(hidden @ params)
        return jnp.mean(hidden**2), None

    args = jnp.zeros((64, 64)), {"x": jnp.zeros((4096, 64))}, jax.random.key(0)

    @functools.cache
    def temporaries(num_microbatches):
        compiled = jax.jit(value_and_gradient(loss, num_microbatches)).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    batch_bytes = 4096 * 64 * 4  # the scan's transposed copy of it does not shrink
    assert temporaries(8) - batch_bytes < (temporaries(1) - batch_bytes) / 2


def test_a_batch_divides_into_its_microbatches(problem):
    with pytest.raises(ValueError, match="a batch of 12 does not divide into 5 microbatches"):
        jax.jit(value_and_gradient(loss, 5))(*problem)
