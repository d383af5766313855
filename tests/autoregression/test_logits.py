import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.autoregression import (
    check_sampling,
    decode,
    filtered,
    guide,
    guided,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    linear_guidance_scale,
    maskgit,
    pair,
    sample,
)

VOCABULARY = 11
LOGITS = 2 * jnp.asarray(np.random.default_rng(0).standard_normal((4, VOCABULARY), np.float32))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_draws_have_the_filtered_law():
    """A chi-square test that misses an error of 3 % of the probability with chance 1e-3."""
    count, options = 20_000, dict(temperature=1.3, top_p=0.9)
    logits = jnp.broadcast_to(LOGITS[0], (count, VOCABULARY))
    tokens = jax.jit(functools.partial(sample, **options))(keys(count), logits)
    expected = count * np.asarray(jax.nn.softmax(filtered(LOGITS[:1], **options)[0]), np.float64)
    observed = np.bincount(tokens, minlength=VOCABULARY)
    kept = expected > 0
    assert observed[~kept].sum() == 0 and 1 < kept.sum() < VOCABULARY
    assert stats.chisquare(observed[kept], expected[kept] / expected.sum() * count).pvalue > 1e-3
    assert filtered(LOGITS.astype(jnp.bfloat16)).dtype == jnp.float32  # and so is Gumbel's noise


def test_temperature_zero_is_greedy_and_no_temperature_recompiles():
    traces = []

    @jax.jit
    def draw(keys, logits, temperature):
        traces.append(None)
        return sample(keys, logits, temperature, top_k=4, top_p=0.5)

    greedy = LOGITS.argmax(-1)
    np.testing.assert_array_equal(draw(keys(4), LOGITS, 0.0), greedy)
    for seed in range(3):  # nearly 0: a gap of the two largest of .1 is a gap of 100
        np.testing.assert_array_equal(draw(keys(4, seed), LOGITS, 1e-3), greedy)
    assert len(traces) == 1
    mixed = sample(keys(4), 0 * LOGITS, jnp.asarray([0.0, 1.0, 0.0, 1.0]))
    assert mixed[0] == mixed[2] == 0 and mixed[1] != mixed[3]


def test_a_sample_does_not_depend_on_its_batch():
    np.testing.assert_array_equal(sample(keys(4), LOGITS)[2:], sample(keys(4)[2:], LOGITS[2:]))


def test_the_most_likely_tokens_are_kept_where_the_threshold_is_rounded_above_them(monkeypatch):
    """As it may be at min_p = 1, because XLA may compute logits twice with different rounding."""
    kept = jnp.isfinite(keep_min_p(LOGITS, 1 + 1e-6))
    np.testing.assert_array_equal(kept, np.arange(VOCABULARY) == LOGITS.argmax(-1)[:, None])
    values, indices = jax.lax.top_k(LOGITS, 3)
    monkeypatch.setattr(jax.lax, "top_k", lambda logits, k: (values + 1e-6, indices))
    kept = np.isfinite(keep_top_k(LOGITS, 3))
    np.testing.assert_array_equal(np.take_along_axis(kept, indices, axis=1), True)
    np.testing.assert_array_equal(kept.sum(1), 3)


def test_top_p_keeps_the_fewest_of_equally_likely_tokens_and_top_k_all():
    """0.4 + 0.2 of {0.2, 0.2, 0.4, 0.2} reach 0.5; the first of the equal tokens is kept."""
    logits = jnp.log(jnp.asarray([[0.2, 0.2, 0.4, 0.2]]))
    kept = lambda logits: np.flatnonzero(np.isfinite(logits)).tolist()
    assert kept(keep_top_p(logits, 0.5)) == [0, 2]
    assert kept(keep_top_p(jnp.zeros((1, 8)), 0.5)) == [0, 1, 2, 3]
    assert kept(keep_top_k(logits, 2)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="top_k is from 1"):
        keep_top_k(logits, 0)
    with pytest.raises(ValueError, match="top_p is above 0"):  # would exclude every token
        keep_top_p(logits, 0.0)


def test_guidance_is_one_call_on_pairs():
    """The logits of a label are its row of a table: u + s·(c − u) by hand."""
    table, labels, null, calls = np.asarray(LOGITS), np.array([0, 2]), 3, []

    def step(cache, tokens, position):
        calls.append(tokens.shape)
        return table[cache] + position, cache + tokens

    scale = lambda position: jnp.where(position < 2, 4.0, jnp.asarray([1.0, 0.0]))
    cache = pair(labels, null)
    np.testing.assert_array_equal(cache, [0, 3, 2, 3])
    logits, after = guide(step, scale)(cache, jnp.asarray([5, 7]), jnp.asarray(1))
    np.testing.assert_allclose(logits, 1 + table[3] + 4 * (table[labels] - table[3]), rtol=1e-5)
    np.testing.assert_array_equal(after - cache, [5, 5, 7, 7])
    logits, _ = guide(step, scale)(cache, jnp.asarray([5, 7]), jnp.asarray(2))
    np.testing.assert_allclose(logits, 2 + table[[0, 3]], rtol=1e-5)
    assert calls == [(4,), (4,)]
    states = guided(pair(LOGITS[:, None], 0 * LOGITS[0]), 2.0)  # of several places an example
    np.testing.assert_allclose(states, 2 * LOGITS[:, None], rtol=1e-6)


def test_a_null_is_not_truncated_to_the_type_of_labels():
    with pytest.raises(ValueError, match="conditioning is int32, and null is float32"):
        pair(jnp.arange(2), 9.7)


def test_a_scale_grows_from_1_but_is_unconditional_in_every_step_at_0():
    shares = jnp.asarray([0.0, 0.25, 1.0])
    for scale, expected in ((5.0, [1, 2, 5]), (1.0, [1, 1, 1]), (0.0, [0, 0, 0])):
        np.testing.assert_array_equal(linear_guidance_scale(scale, shares), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature is at least 0, and 0 is greedy; got -0.1"),
        (dict(top_k=12), "top_k is from 1 to the vocabulary's 11 tokens; got 12"),
        (dict(top_k=0), "top_k is from 1"),
        (dict(top_k=2.0), "top_k is from 1 to the vocabulary's 11 tokens; got 2.0"),
        (dict(top_p=1.5), "top_p is above 0 and at most 1; got 1.5"),
        (dict(min_p=0.0), "min_p is above 0"),
    ],
    ids=str,
)
def test_options_are_checked_before_anything_is_computed(options, message, unchecked_annotations):
    with pytest.raises(ValueError, match=message):
        check_sampling(VOCABULARY, **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(sample, **options), keys(4), LOGITS)


@pytest.mark.parametrize("one", [jax.random.key(0), jax.random.key(0)[None]])
def test_one_key_is_not_the_noise_of_a_batch(one, unchecked_annotations):
    """A batch of one key would draw the same noise for every example."""
    match = r"keys are one per example, \(4,\); got .*: give jax.random.split\(key, 4\)"
    with pytest.raises(ValueError, match=match):
        sample(one, jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=match):
        decode(one, lambda cache, tokens, position: cache, jnp.zeros((4, 3)), None, 2)
    with pytest.raises(ValueError, match=match):
        maskgit(one, None, jnp.zeros((4, 3), int), 0, np.zeros((2, 4), int), np.zeros(2))
