import numpy as np
import pytest

from genjax.metrics import (
    bootstrap_interval,
    density_coverage,
    feature_moments,
    frechet_distance_from_moments,
    inception_score,
    kernel_distance,
    memorization,
    precision_recall,
    seed_interval,
)


def test_intervals_of_a_frechet_distance_contain_the_exact_one_as_often_as_they_say():
    """Their bias of 1/N would take a percentile interval above the exact distance."""
    width, trials, confidence = 4, 150, 0.9
    shift, deviations = np.array([0.2, 0, 0, 0]), np.array([1, 1.1, 0.9, 1])
    exact = (shift**2).sum() + ((deviations - 1) ** 2).sum()
    reference = np.zeros(width), np.eye(width)
    measure = lambda x: frechet_distance_from_moments(*feature_moments([x]), *reference)
    generator, found = np.random.default_rng(0), []
    for _ in range(trials):
        samples = generator.normal(size=(300, width)) * deviations + shift
        low, high = bootstrap_interval(
            measure, samples, confidence=confidence, resamples=100, seed=1
        )
        found.append(low <= exact <= high)
    # The share has a standard deviation of 2.4 %, and quantiles of 100 resamples are rough.
    assert np.mean(found) == pytest.approx(confidence, abs=0.07)


def test_the_mean_of_normal_values():
    """The bootstrap's interval is mean ± 1.96 deviations of the mean."""
    values = np.random.default_rng(0).normal(size=(400, 1)) + 3
    low, high = bootstrap_interval(lambda x: float(x.mean()), values, resamples=4000)
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - reach, values.mean() + reach), abs=0.06 * reach
    )
    # Arrays are resampled each by itself: even equal ones differ, by √2 deviations of the mean.
    difference = lambda x, y: float(x.mean() - y.mean())
    found = bootstrap_interval(difference, values, values, resamples=4000)
    assert found == pytest.approx((-(2**0.5) * reach, 2**0.5 * reach), abs=0.06 * 2**0.5 * reach)
    assert bootstrap_interval(difference, values, values, resamples=4000, seed=1) != found


def test_seeds():
    """By a table of Student's distribution: 4.303 for three values, 95 %; 1.886 for 80 %."""
    deviation = 1 / np.sqrt(3)
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.303 * deviation, 2 + 4.303 * deviation), abs=1e-3
    )
    assert seed_interval([1.0, 2.0, 3.0], 0.8)[1] == pytest.approx(2 + 1.886 * deviation, abs=1e-3)


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors():
    with pytest.raises(ValueError, match="no features to resample"):
        bootstrap_interval(np.mean)
    for measure in (kernel_distance, precision_recall, density_coverage, memorization):
        with pytest.raises(ValueError, match=f"{measure.__name__} would count .* from seeds"):
            bootstrap_interval(measure, np.ones((9, 1)), np.ones((9, 1)))
    with pytest.raises(ValueError, match="the measure returns 2 numbers; expected one: choose"):
        bootstrap_interval(inception_score, np.ones((10, 2)))
    with pytest.raises(ValueError, match="confidence is 95; expected a share"):
        bootstrap_interval(np.mean, np.ones((3, 1)), confidence=95)
    with pytest.raises(ValueError, match="resamples is 0; expected 1 or more"):
        bootstrap_interval(np.mean, np.ones((3, 1)), resamples=0)
    with pytest.raises(ValueError, match="the measure of features holds NaN"):
        bootstrap_interval(lambda x: np.nan, np.ones((3, 1)), resamples=2)
    for features, words in ((np.ones((0, 1)), "has 0 rows"), (np.full((2, 1), np.nan), "NaN")):
        with pytest.raises(ValueError, match=f"features .*{words}"):
            bootstrap_interval(np.mean, features)
    with pytest.raises(ValueError, match=r"shape \(1,\); expected \[seeds\]"):
        seed_interval([1.0])
    with pytest.raises(ValueError, match="confidence is 95; expected a share"):
        seed_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="values holds NaN or infinity"):
        seed_interval([1.0, np.nan, 2.0])
