import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.nn.resize import bicubic, bilinear, corner_bilinear, eight_bit_colours, resize

random = np.random.default_rng(0)


@pytest.mark.parametrize("method", [corner_bilinear, bilinear, bicubic])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (4, 11), (9, 4), (1, 3)])
def test_constants_remain_and_so_does_an_image_of_the_same_size(method, inputs, outputs):
    matrix = method(inputs, outputs)
    assert matrix.shape == (outputs, inputs)
    # corner_bilinear finds its weights in float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    if inputs == outputs:
        np.testing.assert_array_equal(matrix, np.eye(inputs))


def test_corner_bilinear_interpolates_at_multiples_of_the_ratio():
    values = random.standard_normal(7)
    for outputs in (3, 7, 20):
        expected = np.interp(np.arange(outputs) * 7 / outputs, np.arange(7), values)
        np.testing.assert_allclose(corner_bilinear(7, outputs) @ values, expected, atol=1e-6)


def test_bilinear_interpolates_between_centres_of_pixels():
    values = random.standard_normal(7)
    for outputs in (3, 7, 20):
        centres = (np.arange(outputs) + 0.5) * 7 / outputs - 0.5
        expected = np.interp(centres, np.arange(7), values)
        np.testing.assert_allclose(bilinear(7, outputs) @ values, expected, atol=1e-12)


def test_bicubic_weights():
    """By hand, a half and a quarter of the way between two pixels; the last one goes on."""
    np.testing.assert_allclose(bicubic(4, 1)[0], np.array([-3, 19, 19, -3]) / 32)
    quarter = np.array([-27, 225, 67, -9]) / 256
    np.testing.assert_allclose(bicubic(6, 12)[5], [0, *quarter, 0])
    np.testing.assert_allclose(bicubic(6, 12)[1], [quarter[:2].sum(), *quarter[2:], 0, 0, 0])


def test_an_offset_draws_outputs_together():
    """They are the first of a side that is longer by so much."""
    np.testing.assert_allclose(bicubic(20, 40, offset=10.0), bicubic(20, 50)[:40])


def test_axes_are_resized_each_by_its_own_matrix():
    images = random.standard_normal((2, 3, 5, 2)).astype(np.float32)
    expected = np.einsum("yh,xw,bhwc->byxc", bicubic(3, 4), bicubic(5, 2), images)
    output = jax.jit(resize, static_argnums=(1, 2, 3))(images, 4, 2, bicubic)
    np.testing.assert_allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("sides", [(13, 7), (60, 90)])
def test_that_of_jax_is_pillows(sides):
    """On which the preprocessing of networks relies."""
    image = random.uniform(0, 255, (20, 30)).astype(np.float32)
    expected = Image.fromarray(image).resize(sides[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(
        jax.image.resize(image, sides, "cubic"), expected, atol=2e-3
    )  # of 255; weights in float32


def test_colours():
    values = jnp.array([-1.2, -1.0, 0.0, 0.99, 1.0, 1.3]).reshape(1, 2, 3, 1)
    colours = eight_bit_colours(values)
    assert colours.shape == (1, 2, 3, 3)
    for channel in range(3):
        np.testing.assert_array_equal(colours[..., channel].ravel(), [0, 0, 128, 254, 255, 255])
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 4\); expected .* 1 or 3 channels"):
        eight_bit_colours(jnp.zeros((1, 2, 3, 4)))
