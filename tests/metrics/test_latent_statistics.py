import numpy as np
import pytest

from genjax.metrics import active_units, channel_statistics


def test_statistics_of_mixed_channels():
    """Latents made of white noise by a known matrix have its product with itself for covariance."""
    generator = np.random.default_rng(0)
    matrix = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, -0.3, 0.1]])
    mean = np.array([5.0, -1.0, 0.0])
    count = 40_000
    latents = generator.standard_normal((count // 40, 5, 8, 3)) @ matrix.T + mean
    statistics = channel_statistics(np.array_split(latents, 7))
    covariance = matrix @ matrix.T
    deviation = np.sqrt(np.diagonal(covariance))
    # within four standard errors: σ/√n of means, σ/√2n of deviations, at most 1/√n of correlations
    np.testing.assert_array_less(np.abs(statistics.mean - mean), 4 * deviation / np.sqrt(count))
    np.testing.assert_array_less(
        np.abs(statistics.deviation - deviation), 4 * deviation / np.sqrt(2 * count)
    )
    np.testing.assert_allclose(
        statistics.correlation, covariance / np.outer(deviation, deviation), atol=4 / np.sqrt(count)
    )
    # and as NumPy finds them, all at once
    flat = latents.reshape(-1, 3)
    np.testing.assert_allclose(statistics.mean, flat.mean(0), rtol=1e-10)
    np.testing.assert_allclose(statistics.deviation, flat.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(statistics.correlation, np.corrcoef(flat.T), atol=1e-12)


def test_videos_and_a_constant_channel():
    latents = np.zeros((2, 3, 4, 4, 2), np.float32)
    latents[..., 0] = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    statistics = channel_statistics([latents])
    assert statistics.deviation[1] == 0 and not statistics.correlation[1].any()
    assert statistics.correlation[0, 0] == pytest.approx(1)


def test_active_units_of_a_linear_gaussian_model():
    """With unit noise, x = w·u + e, the posterior mean of unit u is w·x/(1 + w²).

    Its variance is w²/(1 + w²).
    """
    generator = np.random.default_rng(0)
    weights = np.array([0.0, 0.05, 0.09, 0.12, 1.0])  # variances 0, .0025, .008, .0142, .5
    u, noise = generator.standard_normal((2, 20_000, 5))
    means = weights * (weights * u + noise) / (1 + weights**2)
    np.testing.assert_allclose(
        means.var(0), weights**2 / (1 + weights**2), rtol=0.04
    )  # four of √(2/20000)
    assert active_units(means) == 2
    assert active_units(means, threshold=0.005) == 3
    assert active_units(means + 7.0) == 2  # where the mean is does not matter


def test_errors(unchecked_annotations):
    with pytest.raises(ValueError, match="2 or more"):
        active_units(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="one row per example"):
        active_units(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="NaN"):
        channel_statistics([np.full((2, 4, 3), np.nan)])
