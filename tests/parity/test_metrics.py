"""Density, coverage, precision and recall compared with the package of Naeem et al. 2020."""

import numpy as np
import pytest
from prdc import compute_prdc

from genjax.metrics import density_coverage, precision_recall


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("features", [2, 64])
def test_agrees_with_prdc(k, features):
    """The package takes balls without their surface; no pair here lies on a surface."""
    generator = np.random.default_rng(features)
    real, samples = (
        generator.normal(size=(300, features)),
        generator.normal(size=(200, features)) * 0.9 + 0.2,
    )
    theirs = compute_prdc(real, samples, nearest_k=k)
    assert 0 < theirs["coverage"] < 1 and 0 < theirs["density"]
    assert density_coverage(samples, real, k) == pytest.approx(
        (theirs["density"], theirs["coverage"]), rel=1e-12
    )
    assert precision_recall(samples, real, k) == pytest.approx(
        (theirs["precision"], theirs["recall"]), rel=1e-12
    )
