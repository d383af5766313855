import numpy as np
import pytest
from scipy.ndimage import correlate1d

from genjax.metrics import high_frequency_energy

HEIGHT, WIDTH = 12, 20


def wave(k_row, k_column, amplitude=1.0):
    """A cosine of k half periods along each side, which the mirrored image goes on with."""
    rows = np.cos(np.pi * k_row * (np.arange(HEIGHT) + 0.5) / HEIGHT)
    columns = np.cos(np.pi * k_column * (np.arange(WIDTH) + 0.5) / WIDTH)
    return amplitude * np.outer(rows, columns)[None, :, :, None]


@pytest.mark.parametrize("k_row, k_column", [(0, 7), (5, 0), (3, 4), (11, 19)])
def test_a_cosine_has_its_energy_at_its_frequency(k_row, k_column):
    """All energy is below √((k_row/height)² + (k_column/width)²), and none above.

    The mean square of a cosine is a half.
    """
    fraction = np.sqrt((k_row / HEIGHT) ** 2 + (k_column / WIDTH) ** 2)
    energy = 9 / 2 ** ((k_row > 0) + (k_column > 0))
    image = wave(k_row, k_column, amplitude=3.0) + 0.7  # a mean is no detail
    np.testing.assert_allclose(high_frequency_energy(image, fraction - 1e-6), [energy], rtol=1e-10)
    np.testing.assert_allclose(high_frequency_energy(image, fraction + 1e-6), [0], atol=1e-25)


def test_all_frequencies_together_are_the_variance():
    images = np.random.default_rng(0).normal(size=(3, HEIGHT, WIDTH, 2))
    variances = images.var(axis=(1, 2)).mean(axis=-1)
    np.testing.assert_allclose(high_frequency_energy(images, 0.0), variances, rtol=1e-12)


def test_white_noise_has_it_in_proportion_to_the_area():
    """Below half of Nyquist's frequency lies a quarter disc: π/16 of the unit square."""
    noise = np.random.default_rng(0).normal(size=(1, 256, 256, 1))
    # 65,536 squares deviate by √(2/65536), 0.6 %, and the disc's border counts whole pixels.
    np.testing.assert_allclose(high_frequency_energy(noise, 0.5), [1 - np.pi / 16], rtol=4 * 0.006)


def test_a_blurred_image_has_the_square_of_the_blurs_response():
    """(1, 2, 1)/4 along each side multiplies a cosine by cos²(πk/(2·side)).

    This holds at the mirroring borders too.
    """
    blur = lambda images: correlate1d(
        correlate1d(images, [0.25, 0.5, 0.25], axis=1, mode="reflect"),
        [0.25, 0.5, 0.25],
        axis=2,
        mode="reflect",
    )
    response = lambda k_row, k_column: (
        np.cos(np.pi * k_row / (2 * HEIGHT)) ** 2 * np.cos(np.pi * k_column / (2 * WIDTH)) ** 2
    )
    image = wave(7, 0, 2.0) + wave(2, 15) + wave(1, 1, 5.0)  # the last one below the cutoff
    expected = (4 / 2 * response(7, 0) ** 2 + 1 / 4 * response(2, 15) ** 2) / (4 / 2 + 1 / 4)
    ratio = high_frequency_energy(blur(image)) / high_frequency_energy(image)
    np.testing.assert_allclose(ratio, [expected], rtol=1e-10)


def test_errors(unchecked_annotations):
    with pytest.raises(ValueError, match="frame by frame"):
        high_frequency_energy(np.zeros((1, 2, 8, 8, 3)))
    with pytest.raises(ValueError, match="NaN"):
        high_frequency_energy(np.full((1, 8, 8, 3), np.nan))
