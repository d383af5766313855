"""Is what a class-conditional image task generates right, varied, and new?"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sampling import sample_images
from genjax import metrics
from genjax.data import load_dataset, to_float
from genjax.training.log import read_metrics


def _groups(features: np.ndarray, size: int) -> list[np.ndarray]:
    """As many disjoint groups of `size` as there are."""
    return [features[start : start + size] for start in range(0, len(features) - size + 1, size)]


def evaluate_images(task: Any, state: Any, config: Any) -> dict[str, Any]:
    """The metrics of `config.evaluation.num_samples` samples with balanced labels, and how they were made.

    Features are pixels in [−1, 1], of samples rounded to bytes as a PNG would hold them. Fréchet distances
    and precision/recall compare equal numbers: groups as large as the held-out set, disjoint, averaged over
    the groups; `frechet_distance_train` is the same of training images, what a perfect model would get.
    The classifier is a support vector machine fitted to the training images.

    Raises:
        ValueError: fewer samples than held-out images.
    """
    from sklearn.svm import SVC

    train, held_out = (
        load_dataset(config.data.name, split, config.data.directory).source[:]
        for split in (config.data.train_split, config.data.held_out_split)
    )
    count, size = config.evaluation.num_samples, len(held_out["label"])
    if count < size:
        raise ValueError(f"config.evaluation.num_samples={count} must be at least the {size} held-out images")
    labels = np.arange(count) % config.data.num_classes
    images = sample_images(task, state, labels, config.sampling)

    pixels = lambda images: to_float(images).reshape(len(images), -1)
    samples, real, unseen = pixels(images), pixels(train["image"]), pixels(held_out["image"])
    classifier = SVC(C=10.0).fit(real, train["label"])

    def against_held_out(features):
        rows = [
            (metrics.frechet_distance(group, unseen), *metrics.precision_recall(group, unseen))
            for group in _groups(features, size)
        ]
        return [float(value) for value in np.mean(rows, axis=0)]

    frechet_distance, precision, recall = against_held_out(samples)
    frechet_distance_train, precision_train, recall_train = against_held_out(real)
    return {
        "class_accuracy": float(np.mean(classifier.predict(samples) == labels)),
        "classifier_accuracy": float(classifier.score(unseen, held_out["label"])),
        "frechet_distance": frechet_distance,
        "frechet_distance_train": frechet_distance_train,
        "precision": precision,
        "precision_train": precision_train,
        "recall": recall,
        "recall_train": recall_train,
        "nearest_neighbour_ratio": float(metrics.nearest_neighbour_ratio(samples, real, unseen)),
        "num_samples": count,
        "samples_per_distance": size,
        "labels": "balanced",
        "features": "pixels in [-1, 1], samples rounded to bytes",
        "sampler": config.sampling.sampler,
        "num_steps": config.sampling.num_steps,
        "time_shift": config.sampling.shift,
        "guidance_scale": config.sampling.guidance_scale,
        "ema": config.sampling.weights == "ema",
        "seed": config.sampling.seed,
    }


def training_summary(workdir: str | Path, config: Any, step: int) -> dict[str, Any]:
    """What a report says of the training up to a step, as its run wrote it down."""
    rows = [row for row in read_metrics(Path(workdir) / "metrics.jsonl") if row["step"] <= step]
    rates = [row["steps_per_second"] for row in rows if "steps_per_second" in row]
    return {
        "experiment": config.experiment,
        "steps": step,
        "seconds": max(row["seconds"] for row in rows),
        "steps_per_second": len(rates) / sum(1 / rate for rate in rates),
        "device": json.loads((Path(workdir) / "config.json").read_text())["device"],
    }


def print_report(report: dict[str, Any]) -> None:
    for name, value in report.items():
        print(f"  {name:24} {value:.4g}" if isinstance(value, float) else f"  {name:24} {value}")
