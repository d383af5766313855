import numpy as np

from genjax.autoregression import orders


def test_orders_of_a_picture_with_two_channels():
    """Read off a drawing of 2×3 pixels: 0 1 2 above 3 4 5."""
    pixels = {
        "raster": [0, 1, 2, 3, 4, 5],
        "columns": [0, 3, 1, 4, 2, 5],
        "serpentine": [0, 1, 2, 5, 4, 3],
    }
    for name, expected in pixels.items():
        places = getattr(orders, name)((2, 3, 2))
        np.testing.assert_array_equal(places.reshape(6, 2), [[2 * p, 2 * p + 1] for p in expected])
