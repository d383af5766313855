import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import kernel_distance, neighbours


def cloud(seed, examples, features, centre=0.0, deviation=1.0):
    return np.random.default_rng(seed).normal(size=(examples, features)) * deviation + centre


def distance_by_loops(a, b):
    kernel = lambda x, y: (sum(x * y) / len(x) + 1) ** 3
    distinct = lambda x: np.mean(
        [kernel(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)]
    )
    across = np.mean([kernel(x, y) for x, y in itertools.product(a, b)])
    return distinct(a) + distinct(b) - 2 * across


@pytest.mark.parametrize("features", [1, 3, 20])
@pytest.mark.parametrize("examples", [2, 31])
def test_agrees_with_loops(features, examples):
    a, b = cloud(0, 24, features), cloud(1, examples, features, centre=0.5)
    # A difference of means of up to 1e2 here
    assert kernel_distance(a, b) == pytest.approx(distance_by_loops(a, b), rel=1e-11, abs=1e-12)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    a, b = cloud(0, 53, 6), cloud(1, 41, 6, centre=0.3)
    expected = kernel_distance(a, b)
    for entries in (1, 100, 41 * 50):
        monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", entries)
        assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_symmetric_and_blind_to_order():
    a, b = cloud(0, 40, 5), cloud(1, 30, 5, centre=0.3)
    expected = pytest.approx(kernel_distance(a, b), rel=1e-12)
    assert kernel_distance(b, a) == expected
    assert kernel_distance(a[::-1], np.random.default_rng(2).permutation(b)) == expected


def test_constant_features():
    """With all of a at x and all of b at y, it is k(x, x) + k(y, y) − 2 k(x, y).

    This holds at any number of examples.
    """
    x, y = np.array([1.0, 2.0]), np.array([-1.0, 0.5])
    a, b = np.tile(x, (4, 1)), np.tile(y, (3, 1))
    assert kernel_distance(a, b) == pytest.approx(3.5**3 + 1.625**3 - 2 * 1.0**3, rel=1e-13)


def test_unbiased_exactly():
    """The mean over all samples of two small distributions is the distributions' own distance."""
    p, q = cloud(0, 3, 2), cloud(1, 2, 2)
    kernel = lambda x, y: ((x @ y.T / 2 + 1) ** 3).mean()
    population = kernel(p, p) + kernel(q, q) - 2 * kernel(p, q)
    draws_p, draws_q = (itertools.product(range(len(points)), repeat=3) for points in (p, q))
    every = [
        kernel_distance(p[list(i)], q[list(j)]) for i, j in itertools.product(draws_p, draws_q)
    ]
    assert len(every) == 27 * 8 and np.std(every) > 0.1
    assert np.mean(every) == pytest.approx(population, rel=1e-12)


@pytest.mark.parametrize(
    "centre, deviation, expected",
    [
        (0.0, 1.0, 0.0),
        # N(0, I) and N(0, s²I) differ in the second moment: 3 (s² − 1)² / d
        (0.0, 1.5, 3 * (1.5**2 - 1) ** 2),
        # N(0, 1) and N(m, 1) in the first three: 3 m² + 3 m⁴ + (m³ + 3m)²
        (0.5, 1.0, 3 * 0.5**2 + 3 * 0.5**4 + (0.5**3 + 3 * 0.5) ** 2),
    ],
)
def test_gaussians_in_expectation(centre, deviation, expected):
    """By the moments of a Gaussian, in one dimension; 400 seeds, within 4 standard errors."""
    distances = [
        kernel_distance(cloud(2 * seed, 60, 1), cloud(2 * seed + 1, 40, 1, centre, deviation))
        for seed in range(400)
    ]
    error = np.std(distances) / np.sqrt(len(distances))
    assert np.mean(distances) == pytest.approx(expected, abs=4 * error)
    assert error < 0.1 * max(expected, 1)  # or the comparison shows little
    assert min(distances) < 0 or expected > 0  # not clipped: that would bias it


def test_scaled_gaussians_in_many_dimensions():
    """3 (s² − 1)² / d, where its scatter is small."""
    distance = kernel_distance(cloud(0, 3000, 64), cloud(1, 3000, 64, deviation=2.0))
    assert distance == pytest.approx(3 * 9 / 64, rel=0.05)


def test_jax_arrays_are_taken():
    a, b = (jnp.asarray(cloud(seed, 20, 3), jnp.float32) for seed in (0, 1))
    assert kernel_distance(a, b) == kernel_distance(
        np.asarray(a, np.float64), np.asarray(b, np.float64)
    )


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    ok = np.ones((3, 4))
    with pytest.raises(
        ValueError, match=r"features_a has shape \(3, 2, 2\); expected two axes.*pool"
    ):
        kernel_distance(np.ones((3, 2, 2)), ok)
    with pytest.raises(
        ValueError, match="features_b has 1 rows; expected 2 or more: pass more examples"
    ):
        kernel_distance(ok, ok[:1])
    with pytest.raises(
        ValueError, match="features_a has 4, features_b has 5 features; expected equal"
    ):
        kernel_distance(ok, np.ones((3, 5)))
    with pytest.raises(ValueError, match="features_b holds NaN or infinity.*diverged"):
        kernel_distance(ok, ok * np.nan)
