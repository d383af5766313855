"""Statistics of reference images in a network's features, computed once and stored."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.evaluation.features.networks import FeatureNetwork, features_of, in_batches
from genjax import metrics
from genjax.data import Dataset, center_crop, compose, resize
from genjax.data.dataset import num_threads
from genjax.folders import cache_folder
from genjax.unfinished import unfinished

# Reference images in KID, precision and recall: as many as Dhariwal & Nichol 2021 take.
REFERENCE_FEATURES = 10_000


class Statistics(NamedTuple):
    """Statistics of reference images.

    Attributes:
        mean, covariance: of the features of all images, in float64.
        features: of a draw of at most `REFERENCE_FEATURES` images, `[images features]`; None for
            published files without images.
        protocol: how they were computed, by name; empty for published files, which do not say.
        path: where they are stored.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None
    protocol: dict[str, Any]
    path: Path


def reference_statistics(
    network: FeatureNetwork,
    dataset: Dataset,
    size: int | None = None,
    path: str | os.PathLike | None = None,
) -> Statistics:
    """Return the statistics of all images of a data set.

    They are read from `path`, or computed and stored there. `path` may also be a file of published
    statistics: arrays `mu` and `sigma`, and possibly images of the set as `arr_0` (Dhariwal &
    Nichol 2021), whose features are then computed. Published files do not say how they were made.

    Args:
        size: images are resized and cropped to it as Dhariwal & Nichol 2021 do; None keeps them as
            they are stored.
        path: by default `genjax/reference-HASH.npz` in `$XDG_CACHE_HOME`, else in `~/.cache`; HASH
            is of the protocol.

    Raises:
        ValueError: the file is of another protocol, whose differences are listed, or holds no
            statistics.
    """
    prepare = (
        compose(resize(size), center_crop(size)) if size else lambda example, generator: example
    )
    unused = np.random.default_rng(0)
    rows = np.random.default_rng(0).permutation(len(dataset.source))
    with ThreadPoolExecutor(num_threads()) as pool:

        def read(part: slice) -> tuple[np.ndarray]:
            image = lambda row: prepare(dataset.source[row], unused)["image"]
            return (np.stack(list(pool.map(image, rows[part].tolist()))),)

        (some,) = read(slice(10))
        protocol = _protocol(network, dataset, size, some)
        path = Path(path or _cache(protocol))
        if path.exists():
            return _read_statistics(network, path, protocol)
        kept = []

        def batches() -> Iterator[np.ndarray]:
            for features, _ in in_batches(network.apply, network.variables, read, len(rows)):
                if sum(map(len, kept)) < REFERENCE_FEATURES:
                    kept.append(features)
                yield features

        mean, covariance = metrics.feature_moments(batches())
    statistics = Statistics(
        mean, covariance, np.concatenate(kept)[:REFERENCE_FEATURES], protocol, path
    )
    if jax.process_index() == 0:
        _write_statistics(statistics)
    return statistics


def _protocol(
    network: FeatureNetwork, dataset: Dataset, size: int | None, images: np.ndarray
) -> dict[str, Any]:
    """Return all that the statistics depend on, of which `images` are the first ten images."""
    return {
        "network": network.description,
        "weights' SHA-256": network.weights,
        "resizing": network.resizing,
        "dataset": dataset.name,
        "split": dataset.split,
        "number of images": len(dataset.source),
        "image shape": list(images.shape[1:]),
        "preparation": f"shorter side to {size}, middle {size}×{size}" if size else "none",
        "SHA-256 of ten images": hashlib.sha256(images.tobytes()).hexdigest(),
    }


def _cache(protocol: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"reference-{digest[:16]}.npz"


def _write_statistics(statistics: Statistics) -> None:
    moments = dict(mu=statistics.mean, sigma=statistics.covariance)
    protocol = json.dumps(statistics.protocol)
    with unfinished(statistics.path) as part, open(part, "wb") as file:
        np.savez(file, **moments, features=statistics.features, protocol=protocol)


def _read_statistics(
    network: FeatureNetwork, path: Path, protocol: Mapping[str, Any]
) -> Statistics:
    with np.load(path, allow_pickle=False) as stored:
        if not {"mu", "sigma"} <= set(stored):
            raise ValueError(f"{path} holds {', '.join(stored)}; statistics are mu and sigma")
        there, features = {}, None
        if "protocol" in stored:
            there, features = json.loads(str(stored["protocol"])), stored["features"]
            differing = [
                f"  {name}: {there.get(name)!r} there, {value!r} now"
                for name, value in protocol.items()
                if there.get(name) != value
            ]
            if differing:
                raise ValueError(
                    f"{path} holds statistics of another protocol:\n" + "\n".join(differing) + "\n"
                    "Name another file in the measure's `reference`, or none; one that is absent "
                    "is made."
                )
        elif "arr_0" in stored:
            features, _ = features_of(network, stored["arr_0"][:REFERENCE_FEATURES])
        for name in ("mu", "sigma"):
            if not np.isfinite(stored[name]).all():
                raise ValueError(f"{path} has NaN or infinity in {name}; make the statistics again")
        return Statistics(stored["mu"], stored["sigma"], features, there, path)
