"""Statistics of all reference images: computed once, and refused under another protocol."""

import numpy as np
import pytest

from experiments.evaluation.features import networks, statistics
from experiments.evaluation.features.statistics import reference_statistics
from tests.experiments.stand_in import (
    WIDTH,
    dataset_of,
    features_and_logits,
    network_of,
    not_to_be_called,
    pictures,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(networks, "BATCH", 16)


def test_statistics_are_of_all_images_and_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "REFERENCE_FEATURES", 40)
    images = np.sort(pictures(200, 0), axis=0)  # the first are the darkest
    computed = reference_statistics(network_of(), dataset_of(images))
    features, _ = features_and_logits(images)
    np.testing.assert_allclose(computed.mean, features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(computed.covariance, np.cov(features.T), rtol=1e-4, atol=1e-6)
    # a draw, without repetition
    distances = np.linalg.norm(computed.features[:, None] - features, axis=-1)
    drawn = distances.argmin(1)
    assert len(set(drawn)) == 40 and distances.min(1).max() < 1e-5
    assert drawn.min() < 50 and drawn.max() > 150
    (path,) = (tmp_path / "cache/genjax").iterdir()  # nothing unfinished is left
    assert path == computed.path
    stored = reference_statistics(network_of(apply=not_to_be_called), dataset_of(images))
    for name in ("mean", "covariance", "features"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(computed, name))
    assert stored.protocol == computed.protocol
    # another protocol has another file
    other = reference_statistics(network_of(weights="def"), dataset_of(images))
    assert other.path != path and len(list((tmp_path / "cache/genjax").iterdir())) == 2


def test_statistics_of_another_protocol_are_refused(tmp_path):
    path, images = tmp_path / "statistics/mine.npz", pictures(30, 0)
    reference_statistics(network_of(), dataset_of(images), path=path)
    again = reference_statistics(network_of(apply=not_to_be_called), dataset_of(images), path=path)
    assert again.path == path
    different = [
        (
            network_of(weights="def"),
            dataset_of(images),
            None,
            "weights' SHA-256: 'abc' there, 'def' now",
        ),
        (
            network_of(resizing="up"),
            dataset_of(images),
            None,
            "resizing: 'not at all' there, 'up' now",
        ),
        (network_of(), dataset_of(images[:29]), None, "number of images: 30 there, 29 now"),
        (network_of(), dataset_of(images, "test"), None, "split: 'train' there, 'test' now"),
        (network_of(), dataset_of(images[:, ::-1]), None, "SHA-256 of ten images"),
        (network_of(), dataset_of(images), 4, "preparation: 'none' there, 'shorter side to 4"),
    ]
    for network, dataset, size, difference in different:
        with pytest.raises(ValueError, match=f"another protocol:\n(.*\n)*  {difference}"):
            reference_statistics(network, dataset, size, path)
    np.savez(tmp_path / "other.npz", mean=np.zeros(WIDTH))
    with pytest.raises(ValueError, match="other.npz holds mean; statistics are mu and sigma"):
        reference_statistics(network_of(), dataset_of(images), path=tmp_path / "other.npz")
    for name, value in dict(mu=np.nan, sigma=np.inf).items():
        broken = dict(mu=np.zeros(WIDTH), sigma=np.eye(WIDTH)) | {name: np.full(WIDTH, value)}
        np.savez(tmp_path / "broken.npz", **broken)
        with pytest.raises(ValueError, match=f"broken.npz has NaN or infinity in {name}; make"):
            reference_statistics(network_of(), dataset_of(images), path=tmp_path / "broken.npz")
