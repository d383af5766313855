"""The measure of equivariance, on generators whose equivariance is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation.context import Context
from experiments.evaluation.equivariance import Equivariance, draw_moves
from experiments.inputs.spaces import Pixels
from experiments.launch.experiment import split_pictures

SIDE, WIDTH = 32, 3.0  # pixels; the spectrum of a bump this wide is e^−44 where the band ends


def bumps(labels, indices, transforms):
    """Draw a Gaussian bump for each index, by its formula at the transformed places."""
    centres = np.random.default_rng(1).uniform(-0.1, 0.1, (100, 2))[indices]
    places = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    x, y = np.meshgrid(places, places)
    old = np.einsum("bij,hwj->bhwi", transforms, np.stack([x, y, np.ones_like(x)], axis=-1))
    squares = np.square(old[..., :2] - centres[:, None, None]).sum(-1) * SIDE**2
    return 2 * np.exp(-squares / (2 * WIDTH**2))[..., None] - 1


def measure(transformed, num_samples=24, **options):
    data = SimpleNamespace(image_shape=(SIDE, SIDE, 1))
    condition = SimpleNamespace(num_classes=10)
    context = Context(data, Pixels((SIDE, SIDE, 1)), condition, num_samples)
    model = SimpleNamespace(functions={"transformed": transformed}, how={"truncation": 1.0})
    options = dict(draws=6, columns=2, frames=4) | options
    return split_pictures(Equivariance(context, **options)(model))


def test_an_equivariant_generator_is_as_exact_as_the_metric():
    """The metric's own filters, windows of three lobes, err by less than 1/100 of the range."""
    figures, films = measure(bumps)
    assert figures["eq_t"] > 100
    assert figures["eq_t_frac"] > 50 and figures["eq_r"] > 40
    assert figures["num_samples"] == 24 and figures["truncation"] == 1
    assert films.keys() == {"translation", "rotation"}
    for frames in films.values():
        assert len(frames) == 5 and all(isinstance(frame, Image.Image) for frame in frames)
        first, middle, last = (np.asarray(frames[i], int) for i in (0, 2, 4))
        assert np.abs(first - last).max() <= 1 < np.abs(first - middle).max()  # of 255


def test_an_offset_of_moved_images_has_its_decibels():
    def offset(labels, indices, transforms):
        moved = np.any(transforms != np.eye(3), axis=(1, 2))
        return bumps(labels, indices, transforms) + 0.1 * moved[:, None, None, None]

    figures, _ = measure(offset)
    by_hand = 20 * np.log10(2 / 0.1)
    assert figures["eq_t"] == pytest.approx(by_hand, abs=1e-4)
    assert figures["eq_t_frac"] == pytest.approx(by_hand, abs=0.2)
    assert figures["eq_r"] == pytest.approx(by_hand, abs=0.2)


def test_images_that_do_not_know_each_other():
    """The difference of two uniform numbers in [−1, 1] has a mean square of 2/3."""
    random = np.random.default_rng(0)
    noise = lambda labels, indices, transforms: random.uniform(-1, 1, (len(indices), SIDE, SIDE, 1))
    figures, _ = measure(noise, num_samples=60)
    assert figures["eq_t"] == pytest.approx(10 * np.log10(4 / (2 / 3)), abs=0.1)


def test_each_image_keeps_its_label_and_latent():
    """Images move down by up to an eighth of the side, and films by half of that.

    Turns go both ways.
    """
    seen = []

    def spy(labels, indices, transforms):
        seen.append((labels, indices, transforms))
        return bumps(labels, indices, transforms)

    measure(spy)
    labels, indices, transforms = map(np.concatenate, zip(*seen, strict=True))
    assert 1 / 16 < np.abs(transforms[:, 1, 2]).max() <= 1 / 8
    np.testing.assert_array_equal(labels, indices % 10)
    assert set(indices) == set(range(24))
    random = np.random.default_rng(0)
    sines = [draw_moves(random, SIDE)["eq_r"].transform[1, 0] for _ in range(20)]
    assert min(sines) < -0.5 and max(sines) > 0.5


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="draws must be from 1 to num_samples, 24; got 25"):
        measure(bumps, draws=25)
    context = Context(SimpleNamespace(image_shape=(8, 8, 1)), None, None, 10)
    with pytest.raises(ValueError, match="takes images of at least 16 pixels a side"):
        Equivariance(context)
