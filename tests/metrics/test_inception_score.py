import numpy as np
import pytest

from genjax.metrics import inception_score


def random_logits(examples, classes, scale):
    return np.random.default_rng(0).normal(size=(examples, classes)) * scale


def score_by_probabilities(logits, splits):
    """As torch-fidelity computes it, less its shuffling."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    p = exponentials / exponentials.sum(1, keepdims=True)
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        marginal = part.mean(0, keepdims=True)
        scores.append(np.exp((part * (np.log(part) - np.log(marginal))).sum(1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize(("examples", "splits"), [(200, 10), (103, 10), (7, 7), (50, 1)])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_agrees_with_probabilities(examples, splits, scale):
    """Also where the parts are unequal: 103 = 7·10 + 3·11."""
    logits = random_logits(examples, 12, scale)
    # relative to the exponential of a mean of some 12 terms of order 1, each rounded by 1e-16
    expected = pytest.approx(score_by_probabilities(logits, splits), rel=1e-12, abs=1e-13)
    assert inception_score(logits, splits) == expected


def test_nothing_known_of_any_is_one():
    assert inception_score(np.full((20, 8), 3.7)) == pytest.approx((1, 0), abs=1e-14)
    same = np.repeat(
        random_logits(1, 8, 2.0), 20, axis=0
    )  # every sample the same: one class mixture
    assert inception_score(same) == pytest.approx((1, 0), abs=1e-14)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_separated_classes_are_counted(classes):
    """`classes` of 16 classes occur; the probabilities of all others underflow to 0."""
    logits = np.full((10 * classes, 16), -5000.0)
    logits[np.arange(len(logits)), np.arange(len(logits)) % classes] = 5000.0
    assert inception_score(logits) == pytest.approx((classes, 0), rel=1e-14, abs=1e-14)
    # Sorted by class, each part has one class only.
    assert inception_score(logits[np.argsort(np.arange(len(logits)) % classes)], classes)[
        0
    ] == pytest.approx(1)


def test_two_parts_of_one_and_of_three_classes():
    """Mean 2 and deviation 1, not corrected."""
    logits = np.full((12, 4), -5000.0)
    logits[np.arange(12), np.r_[[0] * 6, [1, 2, 3, 1, 2, 3]]] = 0.0
    assert inception_score(logits, splits=2) == pytest.approx((2, 1), rel=1e-14)


def test_moving_all_logits_of_an_example_changes_nothing():
    logits = random_logits(60, 9, 2.0)
    moved = logits + np.random.default_rng(1).normal(size=(60, 1)) * 100
    assert inception_score(moved) == pytest.approx(
        inception_score(logits), rel=1e-11
    )  # 100 rounds by 1e-14


def test_errors(unchecked_annotations):
    logits = random_logits(9, 4, 1.0)
    with pytest.raises(ValueError, match="logits has 9 rows; expected 10 or more"):
        inception_score(logits)
    with pytest.raises(ValueError, match="splits is 0; expected 1 or more"):
        inception_score(logits, 0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        inception_score(np.where(logits > 1, np.nan, logits), 3)
    with pytest.raises(ValueError, match="expected two axes"):
        inception_score(logits[0], 1)
