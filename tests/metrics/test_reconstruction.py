import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import load_dataset, to_float
from genjax.metrics import psnr, ssim


def noisy_emoji(count=2, deviation=0.2):
    images = to_float(load_dataset("emoji", "test").source[:count]["image"])
    noise = deviation * np.random.default_rng(0).standard_normal(images.shape)
    return (images + noise).astype(np.float32), images


def test_psnr_of_a_known_error():
    """An offset of a hundredth of the range is 40 dB, of a tenth 20 dB, whatever the units."""
    images = np.random.default_rng(0).uniform(-1, 0.5, (2, 5, 4, 3))
    shifted = images + np.array([0.02, 0.2])[:, None, None, None]
    np.testing.assert_allclose(psnr(shifted, images), [40, 20], rtol=1e-12)
    grey = np.full((1, 4, 4, 1), 100, np.uint8)
    for value in (151, 49):  # off by a fifth of 255: bytes must not wrap around
        other = np.full_like(grey, value)
        np.testing.assert_allclose(psnr(other, grey), [20 * np.log10(5)], rtol=1e-12)
        np.testing.assert_allclose(
            psnr(to_float(other), to_float(grey)), [20 * np.log10(5)], rtol=1e-6
        )


def test_psnr_of_white_noise():
    """Noise of deviation σ gives 20·log₁₀(2/σ).

    The sum of 3,072 squares deviates by √(2/3072), which is 0.11 dB.
    """
    images, originals = noisy_emoji(4, deviation=0.1)
    np.testing.assert_allclose(psnr(images, originals), 20 * np.log10(2 / 0.1), atol=4 * 0.11)


def test_ssim_window_by_window():
    """The equations as they stand: weighted moments in every window, in float64."""
    a, b = (image[:1, 6:24, 3:18].astype(np.float64) for image in noisy_emoji())
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for row, column, channel in np.ndindex(18 - 10, 15 - 10, 3):
        x, y = (image[0, row : row + 11, column : column + 11, channel] for image in (a, b))
        mean_x, mean_y = np.sum(weights * x), np.sum(weights * y)
        variance_x, variance_y = (
            np.sum(weights * (x - mean_x) ** 2),
            np.sum(weights * (y - mean_y) ** 2),
        )
        covariance = np.sum(weights * (x - mean_x) * (y - mean_y))
        values.append(
            (2 * mean_x * mean_y + c1)
            * (2 * covariance + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
        )
    assert 0.1 < np.mean(values) < 0.9
    np.testing.assert_allclose(ssim(a, b), [np.mean(values)], rtol=1e-10)


def test_ssim_of_plain_images():
    """Without variance only luminance counts: (2ab + c₁)/(a² + b² + c₁), with c₁ = (.01·255)²."""
    a, b = np.full((1, 12, 11, 1), 200, np.uint8), np.full((1, 12, 11, 1), 100, np.uint8)
    c1 = 2.55**2
    # differences of squares of 200² cancel to 1e-11, against c₂ of 58
    np.testing.assert_allclose(
        ssim(a, b), [(2 * 200 * 100 + c1) / (200**2 + 100**2 + c1)], rtol=1e-10
    )


def test_equal_images():
    images, _ = noisy_emoji()
    assert np.all(psnr(images, images) == np.inf)
    np.testing.assert_allclose(ssim(images, images), [1, 1], rtol=1e-12)


def test_symmetric_and_of_each_image_alone():
    a, b = noisy_emoji(3)
    for metric in (psnr, ssim):
        values = metric(a, b)
        assert values.shape == (3,) and values.dtype == np.float64 and len(set(values)) == 3
        np.testing.assert_allclose(metric(b, a), values, rtol=1e-12)
        np.testing.assert_allclose(metric(a[1:2], b[1:2]), values[1:2], rtol=1e-12)


def test_bfloat16_is_a_float():
    a, b = (jnp.asarray(images, jnp.bfloat16) for images in noisy_emoji())
    np.testing.assert_allclose(
        psnr(a, b), psnr(np.asarray(a, np.float64), np.asarray(b, np.float64)), rtol=1e-12
    )


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_do_not_belong_together(metric, unchecked_annotations):
    images, originals = noisy_emoji()
    with pytest.raises(
        ValueError,
        match=r"shape \(2, 32, 32, 3\) and originals \(1, 32, 32, 3\); expected the same",
    ):
        metric(images, originals[:1])
    with pytest.raises(ValueError, match="frame by frame"):
        metric(images[None], originals[None])
    with pytest.raises(
        ValueError, match="images are uint8 and originals float32; expected both uint8"
    ):
        metric(images.astype(np.uint8), originals)
    with pytest.raises(ValueError, match="originals holds NaN"):
        metric(images, originals * np.nan)


def test_images_smaller_than_the_window():
    with pytest.raises(ValueError, match=r"\(1, 10, 30, 3\); expected sides of 11 or more"):
        ssim(np.zeros((1, 10, 30, 3)), np.zeros((1, 10, 30, 3)))
