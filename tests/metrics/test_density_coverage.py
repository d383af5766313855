import math

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import density_coverage, neighbours, precision_recall


def cloud(seed, examples, features, centre=0.0):
    return np.random.default_rng(seed).normal(size=(examples, features)) + centre


def by_loops(samples, real, k):
    """The paper's definitions, one pair at a time."""
    balls = []
    for i, point in enumerate(real):
        others = sorted(math.dist(point, other) for j, other in enumerate(real) if i != j)
        balls.append((point, others[k - 1]))
    held = [[math.dist(sample, point) <= radius for point, radius in balls] for sample in samples]
    return np.sum(held) / (k * len(samples)), np.any(held, axis=0).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("features", [1, 2, 10])
def test_agrees_with_loops(k, features):
    samples, real = cloud(0, 70, features, centre=0.7), cloud(1, 50, features)
    density, coverage = by_loops(samples, real, k)
    assert 0 < density < 3 and 0 < coverage < 1  # or the comparison shows little
    assert density_coverage(samples, real, k) == pytest.approx((density, coverage), rel=1e-15)


def test_ties_on_a_grid_agree_with_loops():
    """Integers make exact ties, where a point on the surface of a ball must count."""
    generator = np.random.default_rng(0)
    samples, real = (generator.integers(low, low + 9, size=(60, 2)).astype(float) for low in (0, 3))
    assert density_coverage(samples, real, 3) == pytest.approx(
        by_loops(samples, real, 3), rel=1e-15
    )


@pytest.mark.parametrize("seed", [60, 82, 113])
def test_ties_within_rounding_empty_no_ball(seed):
    """On a grid of tenths, a sample on the surface of a ball may be as near as one outside.

    A choice of the nearest sample by rounded squares takes the one outside.
    """
    generator = np.random.default_rng(seed)
    samples, real = (generator.integers(0, 4, (12, 3)) / 10 for _ in range(2))
    assert density_coverage(samples, real, 1) == pytest.approx(
        by_loops(samples, real, 1), rel=1e-15
    )


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_ties_do_not_cancel(offset):
    """The real data lie on k surfaces and in the middle of their own ball: exactly (k + 1) / k."""
    real = cloud(0, 90, 30, centre=offset)
    assert density_coverage(real[::-1], real) == pytest.approx((6 / 5, 1), rel=1e-15)


@pytest.mark.parametrize("num_samples, num_real", [(40, 40), (25, 60), (60, 25)])
def test_equal_distributions_in_expectation(num_samples, num_real):
    """Density 1 and coverage 1 − (N−1)…(N−k) / ((N+M−1)…(N+M−k)), in any dimension."""
    order = np.arange(1, 6)
    values = [
        density_coverage(cloud(2 * i, num_samples, 3), cloud(2 * i + 1, num_real, 3))
        for i in range(500)
    ]
    errors = np.std(values, axis=0) / np.sqrt(len(values))
    coverage = 1 - np.prod((num_real - order) / (num_real + num_samples - order))
    assert np.abs(np.mean(values, axis=0) - [1, coverage]) / errors == pytest.approx(0, abs=4)
    assert errors.max() < 0.02


def test_an_outlier_in_the_real_data_does_not_count_for_much():
    """The paper's figure 3: samples between real data and an outlier are precise, but not dense."""
    real = np.concatenate([cloud(0, 200, 2), [[60.0, 60.0]]])
    samples = np.random.default_rng(1).uniform(15, 60, size=(200, 2))
    assert precision_recall(samples, real)[0] > 0.9
    assert density_coverage(samples, real)[0] <= 1 / 5


def test_outliers_among_the_samples_do_not_raise_coverage():
    """All samples but a few far ones lie in one mode: they fool recall, whose balls are theirs."""
    real = np.concatenate([cloud(0, 100, 2), cloud(1, 100, 2, centre=10)])
    samples = np.concatenate(
        [cloud(2, 190, 2), np.random.default_rng(3).uniform(-60, 60, size=(10, 2))]
    )
    assert precision_recall(samples, real)[1] > 0.9
    assert density_coverage(samples, real)[1] < 0.55


def test_dropping_a_mode_costs_its_share_of_coverage():
    kept, dropped = cloud(0, 90, 3), cloud(1, 30, 3, centre=100)
    density, coverage = density_coverage(kept, np.concatenate([kept, dropped]))
    assert (density, coverage) == (pytest.approx(6 / 5, rel=1e-15), 0.75)


def test_disjoint_clouds_share_nothing():
    assert density_coverage(cloud(0, 40, 5), cloud(1, 40, 5, centre=1e3)) == (0, 0)


def test_copies_of_one_point_cover_little_however_many():
    """Each copy is in the same balls: density · k is their number, coverage their share."""
    real = cloud(0, 100, 2)
    density, coverage = density_coverage(np.tile(real[:1], (50, 1)), real)
    assert 0 < coverage < 0.2
    assert density * 5 == pytest.approx(coverage * 100, rel=1e-14)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    samples, real = cloud(0, 83, 6, centre=0.5), cloud(1, 61, 6)
    samples[:5] = real[:5]  # surfaces and duplicates too
    expected = density_coverage(samples, real)
    for entries in (1, 61 * 7, 61 * 83, 10**6):
        monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", entries)
        assert density_coverage(samples, real) == expected


def test_jax_arrays_are_taken():
    samples, real = (jnp.asarray(cloud(seed, 30, 3), dtype=jnp.float32) for seed in (0, 1))
    assert density_coverage(samples, real) == density_coverage(
        np.asarray(samples), np.asarray(real)
    )


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    ok = cloud(0, 7, 2)
    with pytest.raises(ValueError, match="k is 0; expected 1 or more: the paper's value is 5"):
        density_coverage(ok, ok, k=0)
    with pytest.raises(ValueError, match="real has 5 rows; expected 6 or more: pass more examples"):
        density_coverage(ok, ok[:5])
    with pytest.raises(ValueError, match=r"samples has shape \(7,\); expected two axes"):
        density_coverage(ok[:, 0], ok)
    with pytest.raises(
        ValueError, match="samples has 1, real has 2 features; expected equal numbers"
    ):
        density_coverage(ok[:, :1], ok)
    with pytest.raises(ValueError, match="samples holds NaN or infinity"):
        density_coverage(ok * np.inf, ok)
