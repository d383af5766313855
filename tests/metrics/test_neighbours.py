import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genjax.metrics import memorization, neighbours


def cloud(seed, examples, features):
    return np.random.default_rng(seed).normal(size=(examples, features))


@pytest.mark.parametrize("entries", [1, 400, 10**6])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_nearest_agrees_with_all_distances(monkeypatch, entries, count):
    monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", entries)
    queries, points = cloud(0, 33, 5), cloud(1, 40, 5)
    indices, distances = neighbours.nearest(queries, points, count)
    every = cdist(queries, points)
    np.testing.assert_allclose(np.sort(distances), np.sort(every)[:, :count], rtol=1e-13)
    np.testing.assert_allclose(distances, np.take_along_axis(every, indices, axis=1), rtol=1e-13)


def test_distances_do_not_cancel():
    """At an offset of 1e6, |a|² + |b|² − 2ab is off by 1e-3, far above these squared distances."""
    points = cloud(0, 20, 8) + 1e6
    _, distances = neighbours.nearest(points, points)
    assert not distances.any()
    _, distances = neighbours.nearest(
        points + 2.0**-10, points
    )  # exact: a multiple of the spacing at 1e6
    np.testing.assert_array_equal(distances, 2.0**-10 * np.sqrt(8))


def test_a_common_offset_hides_no_neighbour():
    """At 1e8, |a|² + |b|² − 2ab is off by about 10, more than the distances."""
    queries, points = cloud(0, 30, 5) + 1e8, cloud(1, 40, 5) + 1e8
    _, distances = neighbours.nearest(queries, points)
    np.testing.assert_allclose(distances[:, 0], cdist(queries, points).min(axis=1), rtol=1e-13)


def test_copies_are_at_zero_and_held_out_data_at_one():
    train, held_out = cloud(0, 80, 6) * 1e3, cloud(1, 50, 6) * 1e3
    assert memorization(train[::3], train, held_out)[:2] == (0, 1)
    found = memorization(held_out, train, held_out)
    assert found.nearest_neighbour_ratio == 1
    assert found.memorized_share == found.memorized_share_real < 0.1


def test_half_copies_halve_it():
    train, held_out = cloud(0, 80, 6), cloud(1, 50, 6)
    found = memorization(np.concatenate([held_out, train[:50]]), train, held_out)
    assert found.nearest_neighbour_ratio == pytest.approx(0.5, rel=1e-14)
    assert found.memorized_share == (1 + found.memorized_share_real) / 2


def test_closed_form_in_one_dimension():
    """Train on the integers: a sample at n + u is |u| away for |u| ≤ ½."""
    train = np.arange(100.0)[:, None]
    shifts = np.random.default_rng(0).uniform(-0.5, 0.5, size=(60, 1))
    found = memorization(train[20:80] + shifts, train, train + 0.3)
    expected = np.abs(shifts).mean() / 0.3
    assert found.nearest_neighbour_ratio == pytest.approx(expected, rel=1e-12)  # rounds at 1e-14
    # The second nearest is 1 − |u| away, so copies have |u| ≤ ¼. Held-out examples have 0.3 and
    # 0.7, but the last lies beyond all training examples and has 0.3 and 1.3.
    assert found.memorized_share == (np.abs(shifts) <= 0.25).mean()
    assert found.memorized_share_real == 0.01


def test_copies_of_a_duplicate_must_be_exact():
    train = np.array([[0.0], [0.0], [10.0], [20.0]])
    samples = np.array([[0.0], [0.1], [10.1], [13.0]])
    assert memorization(samples, train, train + 4).memorized_share == 0.5


def test_jax_arrays_are_taken():
    train, held_out = (
        jnp.asarray(cloud(0, 20, 3), jnp.float32),
        jnp.asarray(cloud(1, 20, 3), jnp.float32),
    )
    assert memorization(train, train, held_out).nearest_neighbour_ratio == 0


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    ok = cloud(0, 6, 2)
    with pytest.raises(
        ValueError, match="samples has 3, train has 2, held_out has 2 features; expected"
    ):
        memorization(cloud(1, 6, 3), ok, ok)
    with pytest.raises(
        ValueError, match="train has 1 rows; expected 2 or more: pass more examples"
    ):
        memorization(ok, ok[:1], ok)
    with pytest.raises(ValueError, match=r"held_out has shape \(6, 1, 2\); expected two axes"):
        memorization(ok, ok, ok[:, None])
    with pytest.raises(
        ValueError, match="all 2 rows of held_out are also in train; expected unseen data"
    ):
        memorization(ok, ok, ok[:2])
