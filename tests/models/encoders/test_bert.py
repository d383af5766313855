import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.bert import Bert, bert_base, bert_large, minilm_l6, sentence_embedding
from genjax.nn import Text
from tests.models.block_options import check_block_options

OPTIONS = dict(num_tokens=11, width=8, depth=2, num_heads=2, mlp_width=12, max_length=6)
MODULE = Bert(**OPTIONS)
IDS = jnp.array([[1, 2, 3, 4, 0], [5, 6, 10, 7, 8]])
MASK = jnp.array([[1, 1, 1, 0, 0], [1] * 5], bool)


def shapes(module):
    """Return the states, the pooled vector and the variables of a network."""

    def init(key):
        text, variables = module.init_with_output(key, IDS)
        return text.tokens, text.pooled, variables

    return jax.eval_shape(init, jax.random.key(0))


@pytest.fixture(scope="module")
def variables():
    expected = jax.eval_shape(MODULE.init, jax.random.key(0), IDS)
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(0.0, 0.7, leaf.shape).astype(np.float32), expected
    )


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODULE.apply)


@pytest.mark.parametrize(
    ("build", "count"),
    [(bert_base, 109_482_240), (bert_large, 335_141_888), (minilm_l6, 22_713_216)],
)
def test_parameter_counts(build, count):
    """Counts of transformers' `BertModel` with the published configurations."""
    variables = jax.eval_shape(build().init, jax.random.key(0), IDS)
    assert sum(a.size for a in jax.tree.leaves(variables)) == count


def test_padding_changes_nothing(apply, variables):
    text = apply(variables, IDS, MASK)
    other = apply(variables, jnp.where(MASK, IDS, 9), MASK)
    np.testing.assert_array_equal(text.tokens[MASK], other.tokens[MASK])
    np.testing.assert_array_equal(text.pooled, other.pooled)
    np.testing.assert_array_equal(sentence_embedding(text), sentence_embedding(other))
    np.testing.assert_array_equal(text.mask, MASK)
    whole, other = apply(variables, IDS), apply(variables, jnp.where(MASK, IDS, 9))
    assert whole.mask is None and np.abs(whole.tokens - other.tokens)[0, :3].max() > 0.01
    # The second text has no padding, so the sums are equal, but programs may order them
    # differently.
    np.testing.assert_allclose(whole.tokens[1], text.tokens[1], atol=1e-5)


def test_order_and_types_matter(apply, variables):
    text = apply(variables, IDS, MASK)
    reversed_text = apply(variables, IDS[:, ::-1], MASK[:, ::-1])
    assert np.abs(text.tokens - reversed_text.tokens[:, ::-1])[1].max() > 0.02
    other = apply(variables, IDS, MASK, jnp.ones_like(IDS))
    assert np.abs(text.tokens - other.tokens)[1].max() > 0.02


def test_without_a_pooler(variables):
    tokens, pooled, parameters = shapes(MODULE.clone(pooler=False))
    assert pooled is None and tokens.shape == (2, 5, 8)
    assert parameters["params"].keys() == variables["params"].keys() - {"pooler"}


def test_texts_that_are_too_long():
    with pytest.raises(ValueError, match="texts of 7 tokens; there are 6 positions: truncate"):
        jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 7), int))


def test_options_reach_the_blocks(variables):
    check_block_options(MODULE, variables, IDS, products=7)


def test_sentence_embedding():
    tokens = jnp.array([[[3.0, 0.0], [0.0, 4.0], [70.0, 70.0]]])
    embedding = lambda mask: sentence_embedding(Text(tokens, mask=mask))
    np.testing.assert_allclose(embedding(jnp.array([[True, True, False]])), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(embedding(None), [np.array([73, 74]) / np.hypot(73, 74)], rtol=1e-6)
