"""Ridge regression against scikit-learn's, ranks against enumeration and draws."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from genjax.metrics import retrieval_accuracy, ridge_scorer


@pytest.mark.parametrize("num_features", [3, 40])  # fewer and more than pairs
def test_scores_are_cosines_with_ridge_regressions_prediction(num_features):
    random = np.random.default_rng(0)
    features, embeddings = (
        1 + 3 * random.normal(size=(20, num_features)),
        2 + random.normal(size=(20, 5)),
    )
    others, captions = random.normal(size=(4, num_features)), random.normal(size=(6, 5))
    standardize = lambda x: (x - features.mean(0)) / features.std(0)
    # scikit-learn penalizes weights of the features themselves; ours are divided by √number.
    ridge = Ridge(alpha=0.7 * num_features).fit(standardize(features), embeddings)
    predicted = ridge.predict(standardize(others)) - embeddings.mean(0)
    centred = captions - embeddings.mean(0)
    norms = np.outer(np.linalg.norm(predicted, axis=1), np.linalg.norm(centred, axis=1))
    scores = ridge_scorer(features, embeddings, 0.7)(others, captions)
    np.testing.assert_allclose(scores, predicted @ centred.T / norms, rtol=1e-9, atol=1e-12)


def test_a_feature_that_does_not_vary_counts_for_nothing():
    random = np.random.default_rng(0)
    features, embeddings = random.normal(size=(9, 2)), random.normal(size=(9, 3))
    score = lambda features, others: ridge_scorer(features, embeddings, 0.5)(others, embeddings)
    constant = np.concatenate([features, np.ones((9, 2))], 1)
    # twice as many features halve the kernel; 1 is the default strength
    expected = ridge_scorer(features, embeddings)(features, embeddings)
    np.testing.assert_allclose(score(constant, constant), expected)


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_accuracy_is_the_mean_over_all_sets_of_candidates(candidates):
    scores = np.random.default_rng(1).normal(size=(7, 7))
    scores[2, 5] = scores[2, 2]  # a tie
    hits = [
        scores[i, i] > scores[i, list(others)].max()
        for i in range(7)
        for others in combinations([j for j in range(7) if j != i], candidates - 1)
    ]
    np.testing.assert_allclose(retrieval_accuracy(scores, candidates), np.mean(hits), rtol=1e-12)


def test_ends_of_the_scale():
    scores = np.eye(300)
    assert retrieval_accuracy(scores) == pytest.approx(1) and retrieval_accuracy(-scores) == 0
    chance = retrieval_accuracy(np.random.default_rng(0).normal(size=(2000, 2000)))
    assert abs(chance - 0.1) < 0.02  # 2,000 draws of .1: a standard error of .0067


def test_faults_are_named():
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        ridge_scorer(np.ones((3, 2)), np.ones((2, 2)))
    for scores, candidates in ((np.eye(9), 10), (np.eye(9), 1), (np.eye(9, 12), 5)):
        words = rf"scores \(9, {scores.shape[1]}\) for {candidates} candidates"
        with pytest.raises(ValueError, match=words):
            retrieval_accuracy(scores, candidates)
