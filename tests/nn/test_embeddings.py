import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import sincos_positions, sinusoidal_embedding


def test_positions_against_a_plain_formula():
    height, width, features = 3, 5, 16
    table = sincos_positions(height, width, features)
    assert table.shape == (height * width, features) and table.dtype == np.float32
    quarter = features // 4
    for row, column, i in np.ndindex(height, width, quarter):
        frequency = 1 / 10_000 ** (i / quarter)
        token = table[row * width + column]
        expected = [f(p * frequency) for p in (column, row) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(token[i::quarter], expected, atol=1e-7)  # float32 rounds by 6e-8


def test_positions_refuse_features_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by 4; got 18"):
        sincos_positions(2, 2, 18)


def test_times_against_a_plain_formula():
    x, features = np.array([0.0, 0.3, 77.0, 1000.0]), 12
    embedding = sinusoidal_embedding(jnp.asarray(x, jnp.float32), features, max_period=500.0)
    angles = x[:, None] * 500.0 ** (-np.arange(6) / 6)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(
        embedding, expected, atol=3e-4
    )  # angles up to 1000, rounded by 1e-7 of it


def test_times_refuse_odd_features():
    with pytest.raises(ValueError, match="an even number; got 7"):
        sinusoidal_embedding(jnp.ones(2), 7)


def test_times_are_embedded_in_float32():
    embedding = sinusoidal_embedding(jnp.array([256.0, 1.0], jnp.bfloat16), 256)
    assert embedding.dtype == jnp.float32
    expected = sinusoidal_embedding(jnp.array([256.0, 1.0], jnp.float32), 256)
    np.testing.assert_array_equal(embedding, expected)
