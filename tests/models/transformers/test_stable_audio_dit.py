"""Properties of Stable Audio's transformer; tests/parity compares it with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.stable_audio_dit import StableAudioDiT, rotations
from genjax.nn import Text
from genjax.nn.rotary import rotate

NETWORK = StableAudioDiT(
    width=32, depth=2, num_heads=4, num_kv_heads=2, text_width=16, time_features=8
)
APPLY = jax.jit(NETWORK.apply)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 3)
    x, tokens, pooled = (
        jax.random.normal(key, (2, *shape))
        for key, shape in zip(keys, [(7, 3), (5, 6), (10,)], strict=True)
    )
    return x, jnp.array([0.2, 0.7]), Text(tokens, pooled)


@pytest.fixture(scope="module")
def variables(inputs):
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.5 * random.standard_normal(a.shape, np.float32), shapes)


def test_the_initialised_network_returns_zeros(inputs):
    output, _ = jax.jit(NETWORK.init_with_output)(jax.random.key(0), *inputs)
    assert output.shape == inputs[0].shape and np.all(output == 0)


def test_masked_text_has_no_effect(inputs, variables):
    x, t, text = inputs
    masked = text.replace(mask=jnp.arange(5) < jnp.array([[5], [3]]))
    outputs = APPLY(variables, x, t, masked)
    other = masked.replace(tokens=masked.tokens.at[1, 3:].set(9.0))
    np.testing.assert_array_equal(APPLY(variables, x, t, other), outputs)
    assert np.abs(APPLY(variables, x, t, text.replace(tokens=other.tokens)) - outputs).max() > 0.1


def test_half_of_a_heads_features_turn_and_products_know_differences_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    turned = [rotate(jnp.repeat(a, 9, axis=1), rotations(9, 8))[0, :, 0] for a in (query, key)]
    products = turned[0] @ turned[1].T
    np.testing.assert_allclose(products[3:, 3:], products[:-3, :-3], atol=1e-5)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_array_equal(turned[0][:, 4:], jnp.repeat(query[0, :, 0, 4:], 9, axis=0))


def test_the_frequencies_of_time_are_not_trained_and_all_else_is(inputs, variables):
    loss = lambda variables: jnp.square(NETWORK.apply(variables, *inputs)).sum()
    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables)):
        trained = path[-1].key != "frequencies"
        assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 1e-3) == trained, path
