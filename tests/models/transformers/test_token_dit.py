"""The transformer over tokens: its first logits, what they depend on, and its shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoregressive.prefixes import TextPrefix
from genjax.models.transformers.token_dit import TokenDiT
from genjax.nn import Text

NETWORK = TokenDiT(num_states=6, vocabulary_size=5, width=16, depth=2, num_heads=2, num_classes=3)
X = jax.random.randint(jax.random.key(0), (2, 4, 3), 0, 6)
T, LABELS = jnp.asarray([0.2, 0.9]), jnp.asarray([0, 3])


@pytest.fixture(scope="module")
def variables():
    variables = jax.jit(NETWORK.init)(jax.random.key(1), X, T, LABELS)
    np.testing.assert_array_equal(NETWORK.apply(variables, X, T, LABELS), 0)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), variables)


def test_logits_depend_on_every_token_the_time_the_class_and_the_place(variables):
    apply = jax.jit(NETWORK.apply)
    logits = apply(variables, X, T, LABELS)
    assert logits.shape == (2, 4, 3, 5)
    for changed in [
        (X.at[0, 3, 2].set((X[0, 3, 2] + 1) % 6), T, LABELS),
        (X, T + 0.05, LABELS),
        (X, T, (LABELS + 1) % 4),
    ]:
        assert np.all(np.abs(apply(variables, *changed) - logits)[0, 0, 0] > 1e-5)
    # The same tokens everywhere: only positions tell places apart.
    same = apply(variables, jnp.zeros_like(X), T, LABELS)
    assert np.abs(same[0, 0, 0] - same[0, 3, 2]).max() > 1e-3


def test_sub_pixels_are_tokens_of_their_own(variables):
    """A grid with channels is the same sequence as a wider grid without."""
    x = X.reshape(2, 2, 2, 3)
    logits = NETWORK.apply(variables, x, T, LABELS)
    assert logits.shape == (2, 2, 2, 3, 5)
    flat = NETWORK.apply(variables, x.reshape(2, 2, 6), T, LABELS)
    np.testing.assert_array_equal(logits.reshape(flat.shape), flat)


def test_a_text_stands_before_the_tokens_and_its_padding_is_not_seen():
    network = NETWORK.clone(num_classes=None, prefix=TextPrefix(4))
    random = np.random.default_rng(0)
    states = random.standard_normal((2, 4, 6), np.float32)
    mask = jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    shapes = jax.eval_shape(network.init, jax.random.key(0), X, T, Text(states, mask=mask))
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    apply = jax.jit(lambda states, t: network.apply(variables, X, t, Text(states, mask=mask)))
    logits = apply(states, T)
    assert logits.shape == (2, 4, 3, 5)
    seen, padding = states.copy(), states.copy()
    seen[:, 1] += 1
    padding[:, 2:] += 1
    assert np.all(np.abs(apply(seen, T) - logits).max((1, 2, 3)) > 1e-3)
    assert np.all(np.abs(apply(states, T + 0.05) - logits).max((1, 2, 3)) > 1e-3)
    changed = np.abs(apply(padding, T) - logits).max((1, 2, 3))
    assert changed[0] == 0 and changed[1] > 1e-3
