import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.autoregression import masked
from genjax.autoregression.masked import (
    choice_temperatures,
    guided_predict,
    masked_by_order,
    masked_counts,
    masked_loss,
    maskgit,
    random_masks,
    random_orders,
    reveal_in_order,
)
from tests.chi_square import p_value

SCHEDULES = ["cosine", "linear", "square", "cubic", "square_root"]


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# Computed from the authors' parallel_decode.py and mask_schedule.py.
@pytest.mark.parametrize(
    "expected",
    [
        [251, 236, 212, 181, 142, 97, 49, 0],
        [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0],
    ],
    ids=len,
)
def test_tokens_masked_after_each_step_are_the_authors(expected):
    np.testing.assert_array_equal(
        masked_counts(masked.cosine, 256, len(expected))[:, 256], expected
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("length", "num_steps"), [(7, 7), (7, 3), (64, 20), (5, 1)])
def test_every_step_reveals_a_token_and_the_last_one_all(name, length, num_steps):
    counts = masked_counts(getattr(masked, name), length, num_steps)
    assert counts.shape == (num_steps, length + 1) and (counts[-1] == 0).all()
    before = np.concatenate([np.arange(length + 1)[None], counts[:-1]])
    assert (counts < before)[before > 0].all() and (counts[before == 0] == 0).all()


def test_counts_that_are_whole_numbers_are_not_rounded_down():
    counts = masked_counts(masked.linear, 24, 6)
    np.testing.assert_array_equal(counts[:, 24], [20, 16, 12, 8, 4, 0])


def test_steps_are_checked():
    for num_steps in (0, 8):
        with pytest.raises(ValueError, match=f"7 tokens are revealed .* num_steps={num_steps}"):
            masked_counts(masked.cosine, 7, num_steps)
        with pytest.raises(ValueError, match=f"7 tokens are revealed .* num_steps={num_steps}"):
            masked.arccos_counts(7, num_steps)


def test_choice_temperatures_of_the_authors():
    """4.5·(1 − (step + 1)/steps) of parallel_decode.py."""
    expected = [4.5 * (1 - (i + 1) / 8) for i in range(8)]
    np.testing.assert_allclose(choice_temperatures(8, 4.5), expected, rtol=1e-6)
    np.testing.assert_array_equal(choice_temperatures(3, 0.0), 0)
    with pytest.raises(ValueError, match="a choice temperature is at least 0.*; got -0.5"):
        choice_temperatures(8, -0.5)


def test_orders_are_uniform():
    """A chi-square test over all 24 orders of 4; it sees a total variation of .04."""
    count = 20_000
    orders = jax.jit(random_orders, static_argnums=1)(keys(count), 4)
    numbers = np.asarray(orders) @ [64, 16, 4, 1]
    _, observed = np.unique(numbers, return_counts=True)
    assert len(observed) == 24 and stats.chisquare(observed).pvalue > 1e-3


def test_an_order_reveals_its_first_places_first():
    orders = jnp.asarray([[2, 0, 3, 1]])
    expected = {0: [], 1: [1], 3: [0, 1, 3], 4: [0, 1, 2, 3]}
    for count, places in expected.items():
        np.testing.assert_array_equal(np.flatnonzero(masked_by_order(orders, count)[0]), places)


def test_masks_of_training_have_the_share_of_the_schedule():
    """⌈8·cos(πu/2)⌉ masked places, each place as often."""
    count = 20_000
    masks = np.asarray(jax.jit(random_masks, static_argnums=1)(keys(count), 8))
    edges = np.arccos(np.arange(9) / 8) * 2 / np.pi  # where the count changes
    expected = count * -np.diff(edges)
    observed = np.bincount(masks.sum(1), minlength=9)
    assert observed[0] == 0 and stats.chisquare(observed[1:], expected).pvalue > 1e-3
    assert stats.chisquare(masks.sum(0)).pvalue > 1e-3


def test_constant_logits_lose_ln_v_under_any_mask():
    mask = jnp.asarray([[True, False, True], [False, True, False]])
    tokens = jnp.asarray([[0, 1, 4], [2, 2, 3]])
    for smoothing in (0.0, 0.1):
        loss = masked_loss(jnp.full((2, 3, 5), 0.7), tokens, mask, smoothing)
        np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
    np.testing.assert_array_equal(masked_loss(jnp.zeros((2, 3, 5)), tokens, mask & False), 0)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5), np.float32))
    log_probabilities = np.log(jax.nn.softmax(logits))
    smooth = 0.9 * np.eye(5)[np.asarray(tokens)] + 0.1 / 5
    expected = [-(smooth * log_probabilities)[i].sum(-1)[mask[i]].mean() for i in range(2)]
    np.testing.assert_allclose(masked_loss(logits, tokens, mask, 0.1), expected, rtol=1e-6)
    rounded = logits.astype(jnp.bfloat16)
    losses = [masked_loss(a, tokens, mask) for a in (rounded, rounded.astype(jnp.float32))]
    np.testing.assert_array_equal(*losses)


# A random law over three tokens of five, with exact conditionals of any tokens given any others.
LENGTH, VOCABULARY = 3, 5
LAW = np.random.default_rng(0).dirichlet(np.full(VOCABULARY**LENGTH, 0.7))
LAW = LAW.reshape((VOCABULARY,) * LENGTH)


def table():
    """Return log p(token at a place | revealed tokens), by the tokens with mask `VOCABULARY`."""
    logits = np.zeros((VOCABULARY + 1,) * LENGTH + (LENGTH, VOCABULARY), np.float32)
    for state in itertools.product(range(VOCABULARY + 1), repeat=LENGTH):
        known = tuple(slice(None) if t == VOCABULARY else slice(t, t + 1) for t in state)
        for place in range(LENGTH):
            others = tuple(i for i in range(LENGTH) if i != place)
            if state[place] == VOCABULARY:
                joint = LAW[known].sum(axis=others)
                logits[(*state, place)] = np.log(joint / joint.sum())
    return jnp.asarray(logits)


TABLE = table()
MASKS = lambda batch: jnp.full((batch, LENGTH), VOCABULARY)
predict = lambda tokens, share: TABLE[tuple(tokens.T)]


def test_one_token_a_step_in_random_order_has_the_exact_law():
    """A chi-square test over all 125 sequences. Noise of choice alone makes the order random.

    It tells the law from that of independent tokens, which one step would draw.
    """
    count = 40_000
    counts, temperatures = masked_counts(masked.linear, LENGTH, LENGTH), np.full(LENGTH, 1e6)

    @jax.jit
    def run(keys, counts, temperatures):
        return maskgit(keys, predict, MASKS(count), VOCABULARY, counts, temperatures)

    tokens = np.asarray(run(keys(count), counts, temperatures.astype(np.float32)))
    numbers = tokens @ VOCABULARY ** np.arange(LENGTH)[::-1]
    frequencies = [LAW.sum((1, 2)), LAW.sum((0, 2)), LAW.sum((0, 1))]
    independent = np.einsum("i,j,k->ijk", *frequencies).ravel()
    observed = np.bincount(numbers, minlength=LAW.size)
    assert p_value(observed, LAW.ravel(), against=independent) > 1e-3


def test_each_place_is_revealed_once_and_given_tokens_stay():
    length, vocabulary, batch = 11, 6, 4
    logits = jax.random.normal(jax.random.key(1), (batch, length, vocabulary))
    given = jnp.full((batch, length), vocabulary).at[1, 3:7].set(2)
    traces = []

    @jax.jit
    def run(keys, counts, temperatures):
        traces.append(None)
        network = lambda tokens, share: logits + share[:, None, None]
        return maskgit(keys, network, given, vocabulary, counts, temperatures, trajectory=True)

    for name in SCHEDULES[:2]:
        counts = masked_counts(getattr(masked, name), length, 5)
        states = run(keys(batch), counts, choice_temperatures(5, 4.5))
        states = np.concatenate([given[None], states])
        changed = states[1:] != states[:-1]
        assert (changed.sum(0) == (np.asarray(given) == vocabulary)).all()
        still = (states[1:] == vocabulary).sum(-1)
        np.testing.assert_array_equal(still, counts[:, [11, 7, 11, 11]])
    assert len(traces) == 1
    other = jax.tree.map(lambda a: a[2:], keys(batch))
    alone = maskgit(other, lambda *_: logits[2:], given[2:], vocabulary, counts, np.zeros(5, "f"))
    whole = maskgit(keys(batch), lambda *_: logits, given, vocabulary, counts, np.zeros(5, "f"))
    np.testing.assert_array_equal(alone, whole[2:])


def test_the_network_is_told_the_share_that_is_revealed_after_the_step():
    """All probability is at the number of tokens that the share says."""
    length, masks = 7, jnp.full((2, 7), 8)
    told = lambda share: jnp.arange(8) == jnp.round(length * share)[:, None, None]
    predict = lambda tokens, share: jnp.broadcast_to(99.0 * told(share), (2, length, 8))
    counts = masked_counts(masked.cosine, length, 3)
    tokens = maskgit(keys(2), predict, masks, 8, counts, np.zeros(3, np.float32))
    known = length - counts[:, length]
    drawn = np.repeat(known, np.diff(known, prepend=0))
    np.testing.assert_array_equal(np.sort(tokens, axis=1), [drawn, drawn])
    states = reveal_in_order(keys(2), predict, masks, np.arange(7), known, trajectory=True)
    expected = np.where(np.arange(length) < known[:, None], known[:, None], 8)
    np.testing.assert_array_equal(states, np.repeat(expected[:, None], 2, axis=1))


def test_guidance_grows_with_the_share_of_revealed_tokens():
    """One call on pairs, and u + s·(c − u) by hand."""
    calls, table = [], np.random.default_rng(0).standard_normal((3, 4, 5)).astype("f")

    def network(tokens, labels):
        calls.append(tokens.shape)
        return jnp.asarray(table)[labels]

    guide = guided_predict(network, np.array([0, 1]), 2, lambda share: 1 + 3 * share)
    output = guide(jnp.zeros((2, 4), int), jnp.asarray([0.0, 0.5]))
    np.testing.assert_allclose(output[0], table[0], rtol=1e-5)
    np.testing.assert_allclose(output[1], table[2] + 2.5 * (table[1] - table[2]), rtol=1e-5)
    assert calls == [(4, 4)]
    constant = guided_predict(network, np.array([0, 1]), 2, 0.0)
    np.testing.assert_allclose(constant(jnp.zeros((2, 4), int), 0)[1], table[2], rtol=1e-5)


def test_an_order_is_revealed_place_by_place_and_known_places_are_drawn_anew():
    """The law here says how often the network was called, so that old draws would be seen."""
    order, counts = np.array([2, 0, 3, 1]), np.array([1, 3, 4])
    calls = lambda tokens: jnp.max(jnp.where(tokens == 9, -1, tokens), axis=1) + 1
    predict = lambda tokens, share: jnp.broadcast_to(calls(tokens)[:, None, None], (2, 4, 9))
    law = lambda keys, logits: logits[..., 0].astype(jnp.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    states = masked.reveal_in_order(
        keys, predict, jnp.full((2, 4), 9), order, counts, law, trajectory=True
    )
    expected = [[9, 9, 0, 9], [1, 9, 1, 1], [2, 2, 2, 2]]
    np.testing.assert_array_equal(states, np.repeat(np.array(expected)[:, None], 2, axis=1))


def test_confidence_is_that_of_float32():
    """In bfloat16 both log-probabilities would be 0. Tokens may be of another type than int32."""
    logits, masks = jnp.array([[[7.0, 0.0], [6.0, 0.0]]], jnp.bfloat16), jnp.full((1, 2), 2)
    counts, surest = masked_counts(masked.linear, 2, 2), np.zeros(2, np.float32)
    law = lambda keys, logits: jnp.argmax(logits, axis=-1)
    steps = counts, surest, law, True
    states = maskgit(keys(1), lambda *_: logits, masks.astype(jnp.int16), 2, *steps)
    np.testing.assert_array_equal(states[:, 0], [[0, 2], [0, 0]])


def test_what_is_of_another_length_is_refused(unchecked_annotations):
    """JAX would take the last column of the counts for every number of masks beyond it."""
    predict = lambda tokens, share: jnp.zeros((*tokens.shape, 6))
    keys, masks = jax.random.split(jax.random.key(0), 2), jnp.full((2, 9), 6)
    counts, temperatures = masked_counts(masked.cosine, 8, 3), choice_temperatures(3, 1.0)
    with pytest.raises(ValueError, match="counts are those of 8 tokens; examples have 9: give"):
        maskgit(keys, predict, masks, 6, counts, temperatures)
    with pytest.raises(ValueError, match="the order has 4 places; examples have 9"):
        reveal_in_order(keys, predict, masks, np.arange(4), np.array([4, 9]))


def test_keys_of_an_order_are_one_per_example(unchecked_annotations):
    predict, order = lambda tokens, share: jnp.zeros((*tokens.shape, 6)), np.arange(9)
    with pytest.raises(ValueError, match="keys are one per example"):
        reveal_in_order(jax.random.key(0), predict, jnp.full((2, 9), 6), order, np.array([9]))
    raw = jax.random.split(jax.random.PRNGKey(0), 2)
    with pytest.raises(ValueError, match="keys are of jax.random.key; these are numbers"):
        reveal_in_order(raw, predict, jnp.full((2, 9), 6), order, np.array([9]))
