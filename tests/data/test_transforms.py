import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import to_float, to_uint8

every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_byte_makes_the_round_trip(array):
    floats = to_float(array(every_byte))
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    back = to_uint8(floats)
    assert type(back) is type(array(every_byte)) and back.dtype == np.uint8
    np.testing.assert_array_equal(back, every_byte)
    np.testing.assert_array_equal(jax.jit(lambda images: to_uint8(to_float(images)))(every_byte), every_byte)


def test_to_uint8_rounds_and_clips():
    pixels = np.array([-3.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.0, 3.0], np.float32).reshape(1, 6, 1)
    np.testing.assert_array_equal(to_uint8(pixels).ravel(), [0, 0, 0, 1, 255, 255])
    assert to_uint8(jnp.full((1, 1, 1), 1.0, jnp.bfloat16)) == 255
