import numpy as np
import pytest

from genjax.nn import sincos_positions
from genjax.nn.positions import interpolated_positions, sincos_table


def test_at_the_base_size_positions_are_the_fixed_ones():
    # The same numbers but for an order of products in float64.
    np.testing.assert_allclose(
        interpolated_positions(5, 5, 16, 5), sincos_positions(5, 5, 16), atol=1e-7
    )


def test_a_grid_of_another_size_spans_the_same_range():
    coarse = interpolated_positions(4, 2, 8, base_size=4).reshape(4, 2, 8)
    fine = interpolated_positions(8, 6, 8, base_size=4).reshape(8, 6, 8)
    np.testing.assert_allclose(fine[::2, ::3], coarse, atol=1e-7)
    np.testing.assert_allclose(
        fine[1, 0], sincos_table(np.array([0.5]), np.array([0.0]), 8)[0], atol=1e-7
    )
    np.testing.assert_allclose(
        fine[0, 1], sincos_table(np.array([0.0]), np.array([2 / 3]), 8)[0], atol=1e-7
    )


def test_interpolation_scale_divides_positions():
    scaled = interpolated_positions(6, 6, 8, base_size=6, interpolation_scale=2.0)
    np.testing.assert_allclose(
        scaled, sincos_table(np.arange(6) / 2, np.arange(6) / 2, 8), atol=1e-7
    )


def test_features_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisible by 4; got 18"):
        interpolated_positions(2, 2, 18, 2)
