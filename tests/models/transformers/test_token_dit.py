"""The transformer over tokens: its first logits, what they depend on, and its shapes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion
from genjax.diffusion import discrete
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


BLOCKS = NETWORK.clone(block_length=2)
BLOCK = np.arange(12) // 2  # of each token of X


@pytest.mark.parametrize("with_text", [False, True], ids=["class", "text"])
def test_tokens_see_their_own_block_and_the_clean_ones_before_it(variables, with_text):
    """Exactly: every other token may change without any effect. So also through a text."""
    network, condition, count = BLOCKS, LABELS[:1], 2 * 12 + 1
    if with_text:
        network = BLOCKS.clone(num_classes=None, prefix=TextPrefix(3))
        condition = Text(jnp.ones((1, 3, 6)), mask=jnp.asarray([[True, True, False]]))
        variables = jax.eval_shape(network.init, jax.random.key(0), X[:1], T[:1], condition)
        random = np.random.default_rng(0)
        draw = lambda a: 0.2 * random.standard_normal(a.shape, np.float32)
        variables = jax.tree.map(draw, variables)
    condition = jax.tree.map(lambda a: jnp.repeat(a, count, 0), condition)
    # Example 0 is as it is; in example 1 + i token i is another, x_t's before the clean ones.
    other = np.concatenate([np.zeros((1, 24), int), np.eye(24, dtype=int)])
    both = (np.tile(X[0].reshape(1, 12), (count, 2)) + other) % 5
    x, clean = both[:, :12].reshape(-1, 4, 3), both[:, 12:].reshape(-1, 4, 3)
    t = np.broadcast_to(np.repeat([0.9, 0.1, 0.5, 0.3, 0.7, 0.2], 2), (count, 12))
    t = t.reshape(x.shape).astype(np.float32)
    apply = jax.jit(network.apply)

    def effects(*inputs):
        """Return whether another token (row) changes the logits of each place (column)."""
        logits = apply(variables, *inputs).reshape(count, 12, 5)
        return np.abs(logits[1:] - logits[0]).max(-1)

    seen = effects(x, t, condition, clean)
    expected = np.concatenate([BLOCK[:, None] == BLOCK, BLOCK[:, None] < BLOCK])
    assert np.all(seen[~expected] == 0) and seen[expected].min() > 1e-5
    seen = effects(x, t, condition)[:12]  # of x_t alone, as in sampling
    expected = BLOCK[:, None] <= BLOCK
    assert np.all(seen[~expected] == 0) and seen[expected].min() > 1e-5


def test_sampling_has_the_logits_of_training(variables):
    """Clean earlier blocks of x_t at time 0 give a block what the clean tokens behind x_t do."""
    clean, noisy = X % 5, jnp.where(X % 2, 5, X)
    t = jnp.broadcast_to(jnp.repeat(jnp.linspace(0.1, 0.9, 6), 2), (2, 12)).reshape(X.shape)
    apply = jax.jit(BLOCKS.apply)
    trained = apply(variables, noisy, t, LABELS, clean)
    for number in range(6):
        earlier = (BLOCK < number).reshape(4, 3)
        x, times = jnp.where(earlier, clean, noisy), jnp.where(earlier, 0, t)
        here = (BLOCK == number).reshape(4, 3)
        logits = apply(variables, x, times, LABELS)
        np.testing.assert_allclose(logits[:, here], trained[:, here], atol=1e-5)


def test_blocks_of_one_token_have_the_exact_likelihood_of_autoregression():
    """A network that is not told the time: its bound is −log p(x), summed over 3 tokens of 3.

    Probabilities of all 27 sequences sum to 1, and the loss of each masked token is −log p/t.
    """
    sizes = dict(num_states=4, vocabulary_size=3, width=16, depth=2, num_heads=2, num_classes=1)
    network = TokenDiT(**sizes, block_length=1, time_scale=0.0)
    process = discrete.Masked(vocabulary_size=3)
    x = jnp.asarray(list(itertools.product(range(3), repeat=3)))
    labels, random = jnp.zeros(27, int), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(27), labels)
    draw = lambda a: 0.4 * random.standard_normal(a.shape, np.float32)
    apply = jax.jit(functools.partial(network.apply, jax.tree.map(draw, shapes)))
    # Token by token: earlier ones are clean, and the others are masks.
    steps = [jnp.where(jnp.arange(3) < place, x, process.mask) for place in range(3)]
    logits = [apply(step, jnp.ones(27), labels)[:, i] for i, step in enumerate(steps)]
    log_p = jax.nn.log_softmax(jnp.stack(logits, 1))
    nll = discrete.losses.cross_entropy(log_p, x)
    assert jnp.sum(jnp.exp(-nll.sum(1))) == pytest.approx(1, abs=1e-5)
    assert nll.std() > 0.3
    options = dict(process=process, target=discrete.clean, times=diffusion.uniform, block_length=1)
    loss, t = discrete.bound_loss(jax.random.key(1), apply, x, labels, x, **options)
    masked = loss > 0
    assert 20 < masked.sum() < 61  # half of 81, within four standard deviations
    np.testing.assert_allclose((loss * t)[masked], nll[masked], rtol=1e-4)
    denoiser = lambda x_t, t: discrete.predict(apply, process, discrete.clean)(x_t, t, labels, x)
    bound = jax.jit(
        lambda key: (
            discrete.continuous_bound(
                key, denoiser, process, x, num_times=64, block_length=1
            ).log_likelihood
        )
    )
    excess = -bound(jax.random.key(2)) - nll.sum(1)
    assert abs(excess.mean()) < 4 * excess.std() / 27**0.5 < 0.2 * nll.sum(1).mean()


def test_a_network_without_blocks_says_so():
    with pytest.raises(ValueError, match="this TokenDiT has no blocks"):
        jax.eval_shape(NETWORK.init, jax.random.key(0), X, jnp.zeros(X.shape), LABELS)


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
