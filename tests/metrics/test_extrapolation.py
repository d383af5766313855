"""Distances of Gaussians, whose exact value and whose bias at N samples are known."""

import numpy as np
import pytest

from genjax.metrics import (
    extrapolated_frechet_distance,
    extrapolated_frechet_distance_from_moments,
    feature_moments,
    frechet_distance,
    frechet_distance_from_moments,
)

WIDTH, COUNT, DRAWS = 16, 1200, 40
IDENTITY = np.zeros(WIDTH), np.eye(WIDTH)


def bias_of(count):
    """Return the bias of N samples of N(0, I) against N(0, I) exactly, up to O(1/N²).

    With covariance I + E, tr (I + E)^½ ≈ d + tr E / 2 − tr E² / 8. E|mean|² is d/N, and
    E tr E² is d(d + 1)/(N − 1).
    """
    return WIDTH / count + WIDTH * (WIDTH + 1) / (4 * (count - 1))


@pytest.fixture(scope="module")
def lines():
    """Return FD_N and extrapolations of draws of N(0, I), to the exact Gaussian."""
    generator = np.random.default_rng(0)
    draws = [generator.normal(size=(COUNT, WIDTH)) for _ in range(DRAWS)]
    plain = [frechet_distance_from_moments(*feature_moments([x]), *IDENTITY) for x in draws]
    return np.array(plain), [
        extrapolated_frechet_distance_from_moments(x, *IDENTITY, seed=seed)
        for seed, x in enumerate(draws)
    ]


def test_the_bias_is_that_of_the_closed_form_and_goes(lines):
    plain, extrapolated = lines
    distances = np.array([line.distance for line in extrapolated])
    error = plain.std() / np.sqrt(DRAWS)
    assert plain.mean() == pytest.approx(bias_of(COUNT), abs=4 * error + 2e-3)
    assert abs(distances.mean()) < 0.15 * bias_of(COUNT)
    assert (np.abs(distances) < plain).mean() > 0.9  # nearer to the exact 0 in nearly every draw
    slopes = np.mean([line.slope for line in extrapolated])
    assert slopes == pytest.approx(bias_of(COUNT) * COUNT, rel=0.1)


def test_the_reference_may_be_finite_too():
    """Half the deviation on one side and a shift: d² = |shift|² + d·(1 − 1/2)²."""
    generator, shift = np.random.default_rng(1), np.full(WIDTH, 0.2)
    exact, errors = WIDTH * (0.2**2 + 0.25), []
    for seed in range(10):
        a = generator.normal(size=(COUNT, WIDTH))
        b = generator.normal(size=(COUNT, WIDTH)) / 2 + shift
        line = extrapolated_frechet_distance(a, b, seed=seed)
        errors.append((frechet_distance(a, b) - exact, line.distance - exact))
    plain, extrapolated = np.mean(errors, axis=0)
    assert plain > 0.04 and abs(extrapolated) < plain / 2


def test_the_points_of_the_line():
    features = np.random.default_rng(2).normal(size=(400, 3))
    line = extrapolated_frechet_distance(features, features + 1, least=50)
    assert len(line.counts) == 15 and (line.counts[0], line.counts[-1]) == (50, 400)
    assert line.distances[-1] == pytest.approx(3)  # all examples
    assert extrapolated_frechet_distance(features, features + 1).counts[0] == 40
    again = extrapolated_frechet_distance(features, features + 1, least=50)
    assert again.distance == line.distance  # subsets depend on the seed alone
    moments = np.zeros(3), np.eye(3)
    for extrapolated, others in (
        (extrapolated_frechet_distance, [features + 1]),
        (extrapolated_frechet_distance_from_moments, moments),
    ):
        lines = [extrapolated(features, *others, seed=seed).distances for seed in (0, 1)]
        assert (lines[0] != lines[1])[:-1].all()
    for pair in ((features, features[:200]), (features[:200], features)):
        assert extrapolated_frechet_distance(*pair).counts[-1] == 200


@pytest.mark.usefixtures("unchecked_annotations")
def test_too_few_examples_and_unequal_widths():
    features = np.zeros((30, 16))
    with pytest.raises(ValueError, match="30 examples of 16 features .* subsets of 32; expected"):
        extrapolated_frechet_distance(features, features)
    with pytest.raises(ValueError, match="subsets of 1; expected"):
        extrapolated_frechet_distance_from_moments(features, *IDENTITY, least=1)
    with pytest.raises(ValueError, match="features_a has 16, features_b has 15 features"):
        extrapolated_frechet_distance(features, features[:, 1:], least=15)
