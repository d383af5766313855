import math

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import neighbours, precision_recall


def cloud(seed, examples, features, centre=0.0):
    return np.random.default_rng(seed).normal(size=(examples, features)) + centre


def share_by_loops(queries, points, k):
    """The paper's equations 1 and 2, one pair at a time."""
    radii = []
    for i, point in enumerate(points):
        radii.append(
            sorted(math.dist(point, other) for j, other in enumerate(points) if i != j)[k - 1]
        )
    balls = list(zip(points, radii, strict=True))
    covered = [
        any(math.dist(query, point) <= radius for point, radius in balls) for query in queries
    ]
    return sum(covered) / len(covered)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("features", [1, 2, 10])
def test_agrees_with_loops(k, features):
    samples, real = cloud(0, 70, features, centre=0.7), cloud(1, 50, features)
    expected = share_by_loops(samples, real, k), share_by_loops(real, samples, k)
    assert 0 < min(expected) < 1  # or the comparison shows little
    assert precision_recall(samples, real, k) == expected


def test_ties_on_a_grid_agree_with_loops():
    """Integers make exact ties, where a point on the surface of a ball must count."""
    generator = np.random.default_rng(0)
    samples, real = (generator.integers(low, low + 9, size=(60, 2)).astype(float) for low in (0, 3))
    expected = share_by_loops(samples, real, 3), share_by_loops(real, samples, 3)
    assert precision_recall(samples, real, 3) == expected


@pytest.mark.parametrize("seed", [88, 165, 187])
def test_ties_within_rounding_hide_no_ball(seed):
    """On a grid of tenths, a sample on the surface of a ball may be as near to a ball without it.

    A choice of the nearest ball by rounded squares misses the first ball.
    """
    generator = np.random.default_rng(seed)
    generator.integers(1, 6)
    samples, real = (generator.integers(0, 4, (12, 3)) / 10 for _ in range(2))
    expected = share_by_loops(samples, real, 1), share_by_loops(real, samples, 1)
    assert precision_recall(samples, real, 1) == expected


def test_disjoint_clouds_share_nothing():
    assert precision_recall(cloud(0, 40, 5), cloud(1, 40, 5, centre=1e3)) == (0, 0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_identical_sets_share_everything(offset):
    real = cloud(0, 40, 5, centre=offset)
    assert precision_recall(real[::-1], real) == (1, 1)


def test_a_subset_is_precise_and_forgets_the_rest():
    real = cloud(0, 200, 4)
    precision, recall = precision_recall(real[real[:, 0] > 0], real)
    assert precision == 1
    assert 0.5 < recall < 0.9  # the kept half, and those just across the border


def test_dropping_a_mode_costs_its_share_of_recall():
    kept, dropped = cloud(0, 90, 3), cloud(1, 30, 3, centre=100)
    both = np.concatenate([kept, dropped])
    assert precision_recall(kept, both) == (1, 0.75)
    assert precision_recall(both, kept) == (0.75, 1)  # inventing one costs precision


def test_a_duplicate_counts_where_balls_have_no_size():
    """More than k equal vectors have radius 0, so only an exact copy is on them."""
    centres = cloud(0, 5, 64, centre=300)
    real = np.repeat(centres, 6, axis=0)
    assert precision_recall(np.repeat(centres, 4, axis=0), real) == (1, 1)
    assert precision_recall(np.repeat(centres + 1e-6, 4, axis=0), real) == (0, 0)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    samples, real = cloud(0, 83, 6, centre=0.5), cloud(1, 61, 6)
    expected = precision_recall(samples, real)
    for entries in (1, 61 * 7, 61 * 83, 10**6):
        monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", entries)
        assert precision_recall(samples, real) == expected


def test_jax_arrays_are_taken():
    samples, real = (jnp.asarray(cloud(seed, 30, 3), dtype=jnp.float32) for seed in (0, 1))
    assert precision_recall(samples, real) == precision_recall(
        np.asarray(samples), np.asarray(real)
    )


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    ok = cloud(0, 6, 2)
    with pytest.raises(ValueError, match="k is 0; expected 1 or more"):
        precision_recall(ok, ok, k=0)
    with pytest.raises(ValueError, match="real has 3 rows; expected 4 or more: pass more examples"):
        precision_recall(ok, ok[:3])
    with pytest.raises(ValueError, match=r"samples has shape \(6,\); expected two axes"):
        precision_recall(ok[:, 0], ok)
    with pytest.raises(
        ValueError, match="samples has 1, real has 2 features; expected equal numbers"
    ):
        precision_recall(ok[:, :1], ok)
    with pytest.raises(ValueError, match="samples holds NaN or infinity"):
        precision_recall(ok * np.inf, ok)
