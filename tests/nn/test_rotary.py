import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.rotary import (
    grid_positions,
    grid_rotations,
    rotary_positions,
    rotate,
    rotations_at,
)

FEATURES = (2, 4, 6)


@pytest.fixture(scope="module")
def queries_and_keys():
    return jnp.asarray(
        np.random.default_rng(0).standard_normal((2, 3, 5, 2, sum(FEATURES)), np.float32)
    )


def test_grids_are_row_major():
    expected = [(i, j, k) for i in range(2) for j in range(3) for k in range(4)]
    np.testing.assert_array_equal(grid_positions(2, 3, 4), expected)


def test_rotation_is_multiplication_by_complex_numbers_in_float64(queries_and_keys):
    positions = np.random.default_rng(1).uniform(-4000, 4000, (5, 3))
    x, _ = queries_and_keys
    output = jax.jit(rotate)(x, rotary_positions(positions, FEATURES, theta=500.0))
    pair, expected = (
        0,
        np.asarray(x, np.float64).view(np.complex128),
    )  # neighbours are real and imaginary part
    for axis, n in enumerate(FEATURES):
        for i in range(n // 2):
            expected[..., pair] *= np.exp(1j * positions[:, axis] / 500.0 ** (2 * i / n))[:, None]
            pair += 1
    # values up to 4, rounded by 6e-8 twice; angles in float32 would be wrong by 4000·6e-8 = 2e-4
    np.testing.assert_allclose(output, expected.view(np.float64), atol=1e-6)


def test_products_depend_on_differences_of_positions_alone(queries_and_keys):
    query, key = queries_and_keys
    positions = np.random.default_rng(1).uniform(0, 50, (5, 3))

    @jax.jit
    def products(positions_of_query, positions_of_key):
        return jnp.einsum(
            "bqhf,bkhf->bhqk", rotate(query, positions_of_query), rotate(key, positions_of_key)
        )

    def shifted(by_query, by_key):
        return products(*(rotary_positions(positions + by, FEATURES) for by in (by_query, by_key)))

    expected, shift = shifted(0.0, 0.0), np.array([30.0, 7.0, -20.0])
    np.testing.assert_allclose(
        shifted(shift, shift), expected, atol=1e-5
    )  # 12 products up to 10, float32
    for axis in np.diag(shift):
        assert np.abs(shifted(axis, 0.0) - expected).max() > 1


def test_norms_of_pairs_stay_and_position_zero_changes_nothing(queries_and_keys):
    x, _ = queries_and_keys
    output = np.asarray(rotate(x, rotary_positions(grid_positions(1, 1, 5), FEATURES)))
    norms = lambda x: np.hypot(x[..., 0::2], x[..., 1::2])
    np.testing.assert_allclose(norms(output), norms(x), rtol=1e-6)
    np.testing.assert_array_equal(output[:, 0], x[:, 0])
    np.testing.assert_array_equal(output[..., :6], x[..., :6])  # axes where all positions are zero


def test_rotation_is_float32_whatever_the_type(queries_and_keys):
    x = queries_and_keys[0].astype(jnp.bfloat16)
    rotations = rotary_positions(grid_positions(1, 1, 5), FEATURES)
    output = rotate(x, rotations)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        output, rotate(x.astype(jnp.float32), rotations).astype(jnp.bfloat16)
    )


def test_a_grid_turns_as_its_points_do():
    axes = np.array([0.0, 1.5]), np.array([-3, 0, 40]), np.arange(4)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    expected = rotary_positions(points, FEATURES, theta=500.0)
    np.testing.assert_array_equal(grid_rotations(axes, FEATURES, theta=500.0), expected)


def test_a_program_does_not_hold_the_rotations_of_a_grid():
    sides = 21, 30, 52  # of 81 frames of 480×832 in Wan's latents
    program = jax.make_jaxpr(lambda: grid_rotations([np.arange(n) for n in sides], FEATURES))()
    assert max(c.size for c in program.consts) <= max(sides) * max(FEATURES)
    assert program.out_avals[0].shape == (32_760, sum(FEATURES) // 2, 2)


def test_every_example_may_have_positions_of_its_own(queries_and_keys):
    x, _ = queries_and_keys
    positions = np.random.default_rng(1).uniform(0, 50, (3, 5, 3)).astype(np.float32)
    form = dict(features=FEATURES, theta=500.0)
    outputs = jax.jit(lambda positions: rotate(x, rotations_at(positions, **form)))(positions)
    expected = [
        rotate(a[None], rotary_positions(each, **form))[0]
        for a, each in zip(x, positions, strict=True)
    ]
    # Angles up to 50 are rounded to 2e-6, and turn values up to 4.
    np.testing.assert_allclose(outputs, np.stack(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("features", [(4, 8), (4, 3, 5)])
def test_features_must_fit(features):
    with pytest.raises(ValueError, match="3 axes need as many even numbers of features"):
        rotary_positions(grid_positions(1, 2, 2), features)
    with pytest.raises(ValueError, match="axes need as many"):
        grid_rotations([np.arange(2)] * 3, features)
