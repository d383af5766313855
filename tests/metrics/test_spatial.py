import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import frechet_distance, spatial_features


def test_swapped_halves_are_seen_where_pooled_features_see_nothing():
    """Bright above, dark below, and a brightness per image: swapped, only the mean image moves."""
    template = np.repeat([1.0, 1.0, -1.0, -1.0], 4 * 9).reshape(4, 4, 9)
    maps = template + np.random.default_rng(0).normal(size=(50, 1, 1, 9))
    swapped = np.roll(maps, 2, axis=1)
    pooled = lambda maps: maps.mean((1, 2))
    assert frechet_distance(pooled(maps), pooled(swapped)) == pytest.approx(0, abs=1e-11)
    # 4 × 4 positions of 7 channels move from 1 to −1 or back
    distance = frechet_distance(spatial_features(maps), spatial_features(swapped))
    assert distance == pytest.approx(4 * 4 * 7 * 2**2, rel=1e-12)


def test_first_channels_of_every_position():
    maps = jnp.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    features = spatial_features(maps, channels=2)
    np.testing.assert_array_equal(features[0], [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21])
    np.testing.assert_array_equal(features[1], features[0] + 24)


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    with pytest.raises(
        ValueError, match=r"maps have shape \(5, 8\); expected \[batch height width channels\]"
    ):
        spatial_features(np.ones((5, 8)))
    with pytest.raises(
        ValueError, match="maps have 3 channels; expected 7 or more: .* pass channels=3"
    ):
        spatial_features(np.ones((2, 4, 4, 3)))
