"""Decoding from exact conditionals of a random law over three tokens of five."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.autoregression import decode, sample

LENGTH, VOCABULARY = 3, 5
LAW = np.random.default_rng(0).dirichlet(np.full(VOCABULARY**LENGTH, 0.7))
LAW = LAW.reshape((VOCABULARY,) * LENGTH)


def conditional(prefix: tuple[int, ...]) -> np.ndarray:
    """Return p(next token | prefix)."""
    joint = LAW[prefix].reshape(VOCABULARY, -1).sum(-1)
    return joint / joint.sum()


def table() -> np.ndarray:
    """Return log p(next | prefix), `[positions prefixes vocabulary]`, by the number of a prefix."""
    rows = np.zeros((LENGTH, VOCABULARY ** (LENGTH - 1), VOCABULARY), np.float32)
    for position in range(LENGTH):
        for number, prefix in enumerate(itertools.product(range(VOCABULARY), repeat=position)):
            rows[position, number] = np.log(conditional(prefix))
    return rows


TABLE = jnp.asarray(table())


def step(prefix, tokens, position):
    """The cache is the number of the prefix, written in base `VOCABULARY`."""
    prefix = prefix * VOCABULARY + tokens
    return TABLE[position + 1, prefix], prefix


def start(batch):
    return jnp.broadcast_to(TABLE[0, 0], (batch, VOCABULARY)), jnp.zeros(batch, jnp.int32)


@functools.partial(jax.jit, static_argnames="length")
def sequences(keys, temperature=1.0, length=LENGTH):
    return decode(
        keys, step, *start(len(keys)), length, functools.partial(sample, temperature=temperature)
    )


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_frequencies_are_the_law():
    """A chi-square test over all 125 sequences; 40,000 samples see a total variation of .05."""
    count = 40_000
    tokens = np.asarray(sequences(keys(count)))
    assert tokens.shape == (count, LENGTH)
    numbers = tokens @ VOCABULARY ** np.arange(LENGTH)[::-1]
    observed, expected = np.bincount(numbers, minlength=LAW.size), LAW.ravel() * count
    rare = expected < 5  # a chi-square statistic needs a few of each, so rare ones are one class
    merge = lambda a: np.append(a[~rare], a[rare].sum())
    assert stats.chisquare(merge(observed), merge(expected)).pvalue > 1e-3


def test_greedy_takes_the_most_likely_token_at_each_position():
    expected = ()
    for _ in range(LENGTH):
        expected += (int(conditional(expected).argmax()),)
    np.testing.assert_array_equal(sequences(keys(2), 0.0), [expected] * 2)


def test_samples_depend_neither_on_the_batch_nor_on_the_length():
    tokens = sequences(keys(6))
    np.testing.assert_array_equal(sequences(keys(6)[4:]), tokens[4:])
    for length in (1, 2):
        np.testing.assert_array_equal(sequences(keys(6), length=length), tokens[:, :length])


def test_given_tokens_are_continued_as_if_they_had_been_drawn():
    tokens = sequences(keys(6))
    logits, cache = step(start(6)[1], tokens[:, 0], 0)
    rest = jax.jit(lambda keys, *a: decode(keys, step, *a, LENGTH - 1, start=1))(
        keys(6), logits, cache
    )
    np.testing.assert_array_equal(rest, tokens[:, 1:])


def test_a_sequence_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="length=0 leaves nothing to decode"):
        decode(keys(2), step, *start(2), 0)


def test_logits_of_several_positions_are_refused(unchecked_annotations):
    with pytest.raises(ValueError, match=r"those of one position; got \(2, 1, 3\): take the last"):
        decode(keys(2), step, jnp.zeros((2, 1, 3)), None, 4)


@pytest.mark.parametrize("length", [2, 3])
def test_the_model_is_once_in_the_program_however_long_the_sequence(length):
    traces = []

    def traced(*arguments):
        traces.append(None)
        return step(*arguments)

    jax.jit(lambda keys: decode(keys, traced, *start(2), length)).lower(keys(2))
    assert len(traces) <= 2  # scan may trace its body again to find types
