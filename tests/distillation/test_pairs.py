"""Laws of pairs of times against published numbers and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import diffusion
from genjax.diffusion import EDM, RectifiedFlow, times
from genjax.distillation import pairs

KEY = jax.random.key(0)


def test_ordered_pairs_are_two_draws_sorted():
    count = 20_000
    t, s = pairs.ordered(KEY, RectifiedFlow(), count, times.uniform, diagonal=0.25)
    same = np.arange(count) < count // 4
    np.testing.assert_array_equal(t == s, same)
    # The larger of two uniform numbers has the distribution function t², the smaller 1 − (1 − s)².
    assert stats.kstest(np.asarray(t), lambda t: t**2).pvalue > 1e-3
    assert stats.kstest(np.asarray(s)[~same], lambda s: 1 - (1 - s) ** 2).pvalue > 1e-3


def test_mean_flows_published_share_is_three_quarters():
    assert pairs.first_share(256, 0.75).sum() == 192
    assert pairs.first_share(10, 0.1).sum() == 1  # 0.1·10 is not rounded to 0


def test_ect_ends_where_its_code_ends():
    """locuslab/ect at t = 0.1, 1, 10, 80, stages 0 and 7."""
    t = jnp.array([0.1, 1.0, 10.0, 80.0])
    np.testing.assert_allclose(pairs.easy_end(t, 0), [0, 0, 4.998184, 40], atol=2e-6)
    np.testing.assert_allclose(
        pairs.easy_end(t, 7), [0.098125, 0.987689, 9.960923, 79.6875], atol=1e-6
    )
    drawn, end = pairs.easy(KEY, EDM(), 50, times.log_normal_sigma, jnp.asarray(7))
    np.testing.assert_allclose(end, pairs.easy_end(drawn, 7), rtol=1e-6)
    assert (pairs.easy_end(t, 40) < t).all()  # which are not rounded together


def test_ict_doubles_every_fifty_thousand_of_four_hundred_thousand_steps():
    steps = [0, 49_999, 50_000, 200_000, 349_999, 350_000, 400_000]
    found = [int(pairs.consistency_steps(step, 400_000)) + 1 for step in steps]
    assert found == [11, 11, 21, 161, 641, 1281, 1281]


def test_a_training_of_few_steps_has_steps_of_a_grid():
    """A trial run has fewer steps than the curriculum has parts."""
    at = jax.jit(lambda step: pairs.consistency_steps(step, 3))
    assert [int(at(step)) for step in range(4)] == [10, 20, 40, 80]


def test_consistency_trainings_schedule_is_the_papers():
    """s₀ = 2, s₁ = 150 and μ₀ = 0.9 of CIFAR-10, by the paper's equations in float64."""
    k = np.array([0, 1, 1_000, 100_000, 400_000, 799_999, 800_000])
    exact = np.ceil(np.sqrt(k / 800_000 * (151**2 - 2**2) + 2**2) - 1) + 1
    found = [int(pairs.adaptive_steps(step, 800_000)) for step in k.tolist()]
    np.testing.assert_array_equal(found, exact)
    assert (found[0], found[-1]) == (2, 151)
    decays = [float(pairs.adaptive_decay(steps)) for steps in found]
    np.testing.assert_allclose(decays, np.exp(2 * np.log(0.9) / exact), rtol=1e-6)


def test_a_curriculum_ends_with_its_last_steps_whatever_their_ratio():
    at = lambda first, last: [
        int(pairs.consistency_steps(step, 400, first, last)) for step in (0, 99, 100, 200, 399)
    ]
    assert at(3, 20) == [3, 3, 6, 12, 20]
    assert at(20, 100)[-1] == at(2, 100)[-1] == 100
    assert at(7, 7) == [7, 7, 7, 7, 7]


def test_ict_draws_steps_by_the_normal_law_of_log_sigma():
    """Weights by SciPy's normal distribution; drawn shares by chi-square, p > 1e-3."""
    grid = diffusion.karras_grid(EDM(), 8)[:-1]  # without the last time, 0
    weights = np.asarray(pairs.log_normal_weights(grid))
    cdf = stats.norm.cdf(np.log(np.asarray(grid, np.float64)), -1.1, 2.0)
    np.testing.assert_allclose(weights / 2, cdf[:-1] - cdf[1:], rtol=2e-5, atol=1e-7)
    t, s = pairs.neighbours(KEY, EDM(), 20_000, grid, weights)
    index = np.searchsorted(-np.asarray(grid), -np.asarray(t))
    np.testing.assert_array_equal(s, grid[index + 1])
    counts = np.bincount(index, minlength=len(weights))
    shares = (cdf[:-1] - cdf[1:])[counts > 5]
    counts = counts[counts > 5]
    assert stats.chisquare(counts, counts.sum() * shares / shares.sum()).pvalue > 1e-3


def test_equal_weights_draw_every_step():
    grid = jnp.array([1.0, 0.6, 0.3, 0.0])
    t, _ = pairs.neighbours(KEY, RectifiedFlow(), 9_000, grid)
    _, counts = np.unique(t, return_counts=True)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_grid_of_numpy_is_that_of_jax_under_jit(unchecked_annotations):
    draw = lambda grid: jax.jit(lambda key: pairs.neighbours(key, RectifiedFlow(), 9, grid))(KEY)
    values = np.array([1.0, 0.6, 0.3, 0.0], np.float32)
    np.testing.assert_array_equal(draw(values), draw(jnp.array(values)))


def test_a_grid_has_steps():
    with pytest.raises(ValueError, match="1 <= first <= last steps; got first=0 and last=1280"):
        pairs.consistency_steps(0, 100, first=0)
