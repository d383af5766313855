"""Moved and turned images against the authors' program (data/README.md) and closed forms."""

from pathlib import Path

import numpy as np
import pytest

from genjax.metrics import equivariance

REFERENCE = dict(np.load(Path(__file__).with_name("data") / "equivariance.npz"))
MOVES = {
    "translated_by_pixels": (5, -3),
    "translated": (3.3, -2.6),
    "rotated": (0.7,),
    "pseudo_rotated": (0.7,),
}


@pytest.mark.parametrize("name", MOVES)
def test_images_and_masks_are_the_authors(name):
    images, mask = getattr(equivariance, name)(REFERENCE["images"], *MOVES[name])
    np.testing.assert_array_equal(mask, REFERENCE[f"{name}_mask"])
    assert 0.2 < mask.mean() < 1
    # Theirs is float32 with sums of up to 2,209 terms.
    inside = np.abs(images - REFERENCE[name])[:, mask]
    assert inside.max() < 1e-5 * np.abs(REFERENCE[name]).max()


@pytest.mark.parametrize("name", MOVES)
def test_the_middle_of_an_image_of_two_sides_moves_as_that_of_the_square(name):
    move, images = getattr(equivariance, name), np.float64(REFERENCE["images"])
    for cut, crop in ((np.s_[:, 4:-4], np.s_[4:-4]), (np.s_[:, :, 4:-4], np.s_[:, 4:-4])):
        whole, known = move(images, *MOVES[name])
        part, mask = move(images[cut], *MOVES[name])
        assert part.shape == images[cut].shape and 0.1 < mask.mean() < 1
        assert known[crop][mask].all()
        np.testing.assert_allclose(part[:, mask], whole[cut][:, mask], rtol=0, atol=1e-9)


def wave(x, y):
    """A plane wave of low frequency, sampled at pixels that are moved by (x, y) to the left."""
    rows, columns = np.mgrid[:32, :32]
    return np.sin(0.4 * (columns - x) + 0.3 * (rows - y))[None, ..., None]


@pytest.mark.parametrize("x, y", [(2.5, 0.0), (-1.25, 3.75)])
def test_a_wave_that_moves_has_many_decibels(x, y):
    moved, mask = equivariance.translated(wave(0, 0), x, y)
    # Lanczos' window of three lobes errs by 0.4 % of the range at this frequency.
    assert equivariance.equivariance(moved, wave(x, y), mask) > 45
    assert equivariance.equivariance(moved, wave(x + 1, y), mask) < 25


def test_a_wave_that_turns_has_many_decibels():
    rows, columns = np.mgrid[:32, :32] - 15.5
    turned = lambda angle: np.sin(0.4 * (np.cos(angle) * columns - np.sin(angle) * rows) + 1)[
        None, ..., None
    ]
    expected, known = equivariance.rotated(turned(0.0), 0.3)
    found, also_known = equivariance.pseudo_rotated(turned(0.3), 0.3)
    mask = known & also_known
    right = equivariance.equivariance(expected, found, mask)
    wrong = equivariance.equivariance(expected, turned(-0.3), mask)
    assert right > 50 and wrong < 15


def test_decibels_are_of_the_mean_square_error_within_the_mask():
    expected, mask = np.zeros((1, 2, 2, 1)), np.array([[True, True], [True, False]])
    found = np.array([0.2, 0.2, 0.2, 9]).reshape(1, 2, 2, 1)
    assert equivariance.equivariance(expected, found, mask) == pytest.approx(20)


def test_images_of_half_precision_have_the_decibels_of_their_values():
    """Sums of their squares exceed 65,504, the largest number of float16."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 64, 64, 3)).astype(np.float16)
    mask = np.ones((64, 64), bool)
    expected = equivariance.equivariance(*images.astype(np.float64), mask)
    np.testing.assert_allclose(equivariance.equivariance(*images, mask), expected, rtol=1e-12)


def test_an_empty_mask_is_no_number():
    """Images of 8 pixels are smaller than the filter of a turn."""
    images = np.random.default_rng(0).standard_normal((1, 8, 8, 1))
    for turn in (equivariance.rotated, equivariance.pseudo_rotated):
        turned, mask = turn(images, 0.3)
        assert not mask.any() and np.isnan(equivariance.equivariance(turned, images, mask))
    assert equivariance.equivariance(images, images, np.ones((8, 8), bool)) == np.inf
