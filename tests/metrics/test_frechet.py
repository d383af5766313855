import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from genjax.metrics import feature_moments, frechet_distance, frechet_distance_from_moments

# Sums and decompositions of these sizes lose about a hundred ulp of the traces, below 1e3 here.
ROUNDING = {"rel": 1e-11, "abs": 1e-11}


def gaussian_features(seed, examples, features):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(features, features)) / np.sqrt(features)
    return generator.normal(size=(examples, features)) @ mixing + generator.normal(size=features)


def orthonormal(seed, rows, columns):
    """[rows columns] with orthonormal rows: an isometry from `rows` to `columns` dimensions."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(columns, rows)))[0].T


def distance_by_sqrtm(a, b):
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)


def test_agrees_with_the_matrix_square_root_at_full_rank():
    a, b = gaussian_features(0, 400, 12), gaussian_features(1, 300, 12)
    # sqrtm of the product has the conditioning of the product, 1e5 here: 1e-16 · 1e5 with room.
    expected = pytest.approx(distance_by_sqrtm(a, b), rel=1e-9)
    assert frechet_distance(a, b) == expected
    assert frechet_distance_from_moments(*feature_moments([a]), *feature_moments([b])) == expected


@pytest.mark.parametrize("features", [1, 7, 64])
def test_unit_normal_to_twice_its_deviation_is_the_dimension(features):
    zero, identity = np.zeros(features), np.eye(features)
    distance = frechet_distance_from_moments(zero, identity, zero, 4 * identity)
    assert distance == pytest.approx(features, **ROUNDING)


def test_commuting_covariances():
    """For A and B with common eigenvectors, d² = Σ (√a_i − √b_i)²."""
    basis, generator = orthonormal(0, 9, 9), np.random.default_rng(1)
    a, b = generator.uniform(0.1, 5, size=(2, 9))
    covariance_a, covariance_b = basis.T * a @ basis, basis.T * b @ basis
    distance = frechet_distance_from_moments(np.zeros(9), covariance_a, np.zeros(9), covariance_b)
    assert distance == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), **ROUNDING)


def test_mean_shift_adds_its_squared_length():
    a, shift = gaussian_features(0, 50, 8), np.arange(8.0)
    assert frechet_distance(a, a + shift) == pytest.approx((shift**2).sum(), **ROUNDING)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
def test_gaussians_on_two_lines(angle):
    """At rank one, deviations a and b at an angle give d² = a² + b² − 2 a b cos(angle)."""
    a, b = 3.0, 0.7
    line_a = a * np.array([1.0, 0.0, 0.0])
    line_b = b * np.array([np.cos(angle), np.sin(angle), 0.0])
    expected = pytest.approx(a**2 + b**2 - 2 * a * b * np.cos(angle), **ROUNDING)
    zero, signs = (
        np.zeros(3),
        np.array([[-1.0], [1.0]]) / np.sqrt(2),
    )  # two examples of unbiased variance 1
    covariance_a, covariance_b = np.outer(line_a, line_a), np.outer(line_b, line_b)
    assert frechet_distance_from_moments(zero, covariance_a, zero, covariance_b) == expected
    assert frechet_distance(signs * line_a, signs * line_b) == expected


@pytest.mark.parametrize("examples", [40, 500])  # fewer and more than the features
def test_an_isometry_into_more_features_changes_nothing(examples):
    a, b, isometry = (
        gaussian_features(0, examples, 6),
        gaussian_features(1, 40, 6),
        orthonormal(2, 6, 200),
    )
    expected = frechet_distance(a, b)
    assert expected == pytest.approx(distance_by_sqrtm(a, b), rel=1e-9)
    a, b = a @ isometry + 3, b @ isometry + 3
    assert frechet_distance(a, b) == pytest.approx(expected, **ROUNDING)
    from_moments = frechet_distance_from_moments(*feature_moments([a]), *feature_moments([b]))
    assert from_moments == pytest.approx(
        expected, rel=1e-9
    )  # covariances square the condition number


def test_zero_eigenvalues_stay_zero():
    """Against the identity d² = Σ (√a_i − 1)².

    A zero rounded to 1e-16 would be off by 1e-8 in its root.
    """
    basis, a = orthonormal(0, 6, 200), np.arange(1.0, 7.0)
    zero = np.zeros(200)
    distance = frechet_distance_from_moments(zero, basis.T * a @ basis, zero, np.eye(200))
    assert distance == pytest.approx(((np.sqrt(a) - 1) ** 2).sum() + 194, **ROUNDING)


def test_more_features_than_examples_in_general_position():
    """In orthogonal subspaces no transport saves anything: d² is the sum of the traces."""
    basis = orthonormal(0, 20, 300)
    a, b = gaussian_features(1, 11, 10) @ basis[:10], gaussian_features(2, 9, 10) @ basis[10:]
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (a**2).sum() / 10 + (b**2).sum() / 8
    assert frechet_distance(a, b) == pytest.approx(expected, **ROUNDING)


def test_constant_features_are_harmless():
    a, b = gaussian_features(0, 90, 5), gaussian_features(1, 80, 5)
    wide_a, wide_b = (np.pad(x, ((0, 0), (2, 3)), constant_values=0.1) for x in (a, b))
    assert frechet_distance(wide_a, wide_b) == pytest.approx(frechet_distance(a, b), **ROUNDING)
    constant = np.full((4, 5), 0.1)
    assert frechet_distance(constant, constant) == 0
    assert frechet_distance(constant, constant + 1) == pytest.approx(5, **ROUNDING)


@pytest.mark.parametrize("examples, features", [(100, 10), (10, 100), (2, 50), (50, 1)])
def test_identical_features_are_at_zero(examples, features):
    a = gaussian_features(0, examples, features)
    assert 0 <= frechet_distance(a, a) < 1e-11
    # The order of examples is no part of a distribution.
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-11
    assert 0 <= frechet_distance_from_moments(*feature_moments([a]), *feature_moments([a])) < 1e-11


@pytest.mark.parametrize("examples", [30, 8])
def test_symmetric_and_invariant_to_rotation(examples):
    a, b, rotation = (
        gaussian_features(0, 40, 16),
        gaussian_features(1, examples, 16),
        orthonormal(2, 16, 16),
    )
    expected = pytest.approx(frechet_distance(a, b), **ROUNDING)
    assert frechet_distance(b, a) == expected
    assert frechet_distance(a @ rotation, b @ rotation) == expected


def test_a_common_offset_of_the_features_does_not_cancel():
    a, b = gaussian_features(0, 60, 6), gaussian_features(1, 60, 6)
    # An offset of 1e6 leaves float64 features 1e-10 of absolute accuracy.
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), abs=1e-7)


def test_moments_in_batches_are_those_of_all_features():
    features = gaussian_features(0, 101, 7) + 1e3
    mean, covariance = feature_moments(iter(np.split(features, [1, 2, 40, 90])))
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_jax_arrays_in_low_precision_are_taken():
    a = jnp.asarray(gaussian_features(0, 20, 4), dtype=jnp.bfloat16)
    b = jnp.asarray(gaussian_features(1, 20, 4), dtype=jnp.float32)
    expected = frechet_distance(np.asarray(a, np.float64), np.asarray(b, np.float64))
    assert frechet_distance(a, b) == expected
    shifted = frechet_distance_from_moments(jnp.zeros(4), jnp.eye(4), jnp.ones(4), jnp.eye(4))
    assert shifted == pytest.approx(4, **ROUNDING)


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    ok = np.ones((3, 4))
    with pytest.raises(
        ValueError, match=r"features_a has shape \(3, 2, 2\); expected two axes.*pool"
    ):
        frechet_distance(np.ones((3, 2, 2)), ok)
    with pytest.raises(
        ValueError, match="features_b has 1 rows; expected 2 or more: pass more examples"
    ):
        frechet_distance(ok, ok[:1])
    with pytest.raises(
        ValueError, match="features_a has 4, features_b has 5 features; expected equal"
    ):
        frechet_distance(ok, np.ones((3, 5)))
    with pytest.raises(ValueError, match="features_b holds NaN or infinity.*diverged"):
        frechet_distance(ok, ok * np.nan)
    with pytest.raises(
        ValueError, match=r"mean_b has shape \(3,\) and covariance_b \(4, 4\); expected"
    ):
        frechet_distance_from_moments(np.ones(4), np.eye(4), np.ones(3), np.eye(4))
    with pytest.raises(ValueError, match="covariance_a holds NaN or infinity"):
        frechet_distance_from_moments(np.ones(4), np.full((4, 4), np.inf), np.ones(4), np.eye(4))
    with pytest.raises(ValueError, match="mean_b holds NaN or infinity"):
        frechet_distance_from_moments(np.ones(4), np.eye(4), np.full(4, np.nan), np.eye(4))
    with pytest.raises(ValueError, match="mean_a has 4, mean_b has 3 features"):
        frechet_distance_from_moments(np.ones(4), np.eye(4), np.ones(3), np.eye(3))
    with pytest.raises(ValueError, match=r"one array goes in as \[features\]\) has shape \(4,\)"):
        feature_moments(ok)
    with pytest.raises(ValueError, match="batches hold 1 examples in all; expected 2 or more"):
        feature_moments([ok[:1]])
    with pytest.raises(ValueError, match="earlier_batches has 4, this_batch has 5 features"):
        feature_moments([ok, np.ones((3, 5))])
