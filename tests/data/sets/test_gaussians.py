import numpy as np
import pytest

from genjax.data import load_dataset
from genjax.data.sets.gaussians import MODES


@pytest.mark.parametrize(
    ("name", "modes", "nearest"), [("grid_of_gaussians", 25, 2.0), ("ring_of_gaussians", 8, 1.5307)]
)
def test_points_lie_around_their_modes(name, modes, nearest):
    centres, deviation = MODES[name]
    assert centres.shape == (modes, 2)
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    # On the circle of radius 2 neighbours are 4·sin(π/8) apart.
    np.testing.assert_allclose(np.sort(apart, 1)[:, 1], nearest, atol=1e-4)
    train, test = (load_dataset(name, split).source[:] for split in ("train", "test"))
    assert len(train["label"]) == 50_000 and len(test["label"]) == 10_000
    for part in (train, test):
        assert part["image"].dtype == np.float32 and part["image"].shape[1:] == (2,)
        assert np.ptp(np.bincount(part["label"], minlength=modes)) <= 1
        rest = (part["image"] - centres[part["label"]]) / deviation
        # four standard errors of the mean and of the deviation of 20,000 normal numbers
        np.testing.assert_allclose(rest.mean(), 0, atol=4 / np.sqrt(20_000))
        np.testing.assert_allclose(rest.std(), 1, atol=4 / np.sqrt(40_000))
    assert not np.isin(test["image"][:, 0], train["image"][:, 0]).all()
    assert np.ptp(train["label"][:100]) > 0  # not sorted
    half = load_dataset(name, "train[:50%]").source[:]
    np.testing.assert_array_equal(half["image"], train["image"][:25_000])


def test_other_splits_are_refused():
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
        load_dataset("ring_of_gaussians", "validation")
