"""Is what a class-conditional image task generates right, varied, and new?"""

import json
from collections import ChainMap, Counter
from pathlib import Path
from typing import Any

import numpy as np
from einops import reduce
from PIL import Image

from experiments.evaluation.features.features import evaluate_features
from experiments.inputs.datasets import load_split
from experiments.launch.sampling import sample_images
from genjax import metrics
from genjax.data import to_float
from genjax.training.log import read_metrics

# What bounds the time and the memory of an evaluation, whatever the size of the data set.
TRAIN_IMAGES, CLASSIFIER_IMAGES, GROUPS, SIDE = 60_000, 10_000, 5, 32


def _some(total: int, count: int) -> np.ndarray:
    """Indices of at most `count` of `total`, a draw that is always the same; in no order, whatever the stored one."""
    return np.random.default_rng(0).permutation(total)[:count]


def _compare(features: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Metrics of groups of features, disjoint and each as large as `unseen`, averaged over the groups."""
    size, rows = len(unseen), []
    for start in range(0, min(len(features), GROUPS * size) - size + 1, size):
        group = features[start : start + size]
        precision, recall = metrics.precision_recall(group, unseen)
        density, coverage = metrics.density_coverage(group, unseen)
        rows.append(
            dict(
                frechet_distance=metrics.frechet_distance(group, unseen),
                kernel_distance=metrics.kernel_distance(group, unseen),
                precision=precision,
                recall=recall,
                density=density,
                coverage=coverage,
            )
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"groups": len(rows)}


def beside_training(samples: np.ndarray, real: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Distances and coverage of features of samples to held-out ones, and, as `…_train`, of training ones.

    Groups as large as the held-out set are averaged over, at most `GROUPS`.
    """
    of_samples, of_train = (
        _compare(features, unseen) for features in (samples, real[: GROUPS * len(unseen)])
    )
    return {
        name + suffix: row[name]
        for name in of_samples
        for suffix, row in (("", of_samples), ("_train", of_train))
    }


class Reference:
    """What samples of a config's data are measured against: its images, and a classifier of them.

    Features are pixels in [−1, 1], of images of more than `SIDE` pixels a side the means of squares of them, so that
    `SIDE` or fewer are left. The classifier, if there is more than one class, is a support vector machine fitted to at
    most `CLASSIFIER_IMAGES` training images; the nearest neighbours are sought among at most `TRAIN_IMAGES`. Where
    there are more, a draw with a fixed seed takes them. The held-out images are cut to the number of samples,
    `config.evaluation.num_samples`.

    Attributes:
        real, unseen: features of training and of held-out images.
        judged: of as many of either, the images and their labels.
        labels: those that the samples shall have, `[samples]`: balanced; or drawn from those of the training images,
            where classes differ in size and `config.evaluation.labels` is "training"; or "none", all 0, for a task that
            knows no classes.
        splits: the training and held-out data.
    """

    def __init__(self, config: Any):
        from sklearn.svm import SVC

        self.splits = [
            load_split(config, split) for split in (config.data.train_split, config.data.held_out_split)
        ]
        train, held_out = (dataset.source for dataset in self.splits)
        count = config.evaluation.num_samples
        train_rows, held_out_rows = _some(len(train), TRAIN_IMAGES), _some(len(held_out), count)
        self.real, train_labels = _features(train, train_rows)
        self.unseen, held_out_labels = _features(held_out, held_out_rows)
        self.judged = tuple(
            (to_float(source[rows]["image"]), labels[: len(rows)])
            for source, rows, labels in (
                (train, train_rows[: len(held_out_rows)], train_labels),
                (held_out, held_out_rows, held_out_labels),
            )
        )
        laws = {
            "balanced": lambda: np.arange(count) % config.data.num_classes,
            "training": lambda: np.random.default_rng(0).choice(train_labels, count),
            "none": lambda: np.zeros(count, int),
        }
        if config.evaluation.labels not in laws:
            raise ValueError(
                f"config.evaluation.labels is {config.evaluation.labels!r}; take one of {', '.join(laws)}"
            )
        self.labels, self.labelled = laws[config.evaluation.labels](), config.evaluation.labels != "none"
        self.num_modes = config.data.num_classes
        self.classifier = None
        if self.num_modes > 1:
            fitted = _some(len(self.real), CLASSIFIER_IMAGES)
            self.classifier_images = len(fitted)
            self.classifier = SVC(C=10.0).fit(self.real[fitted], train_labels[fitted])
            self.classifier_accuracy = float(self.classifier.score(self.unseen, held_out_labels))

    def accuracy(self, images: np.ndarray) -> dict[str, float | int]:
        """The share of images, `[samples height width channels]` in bytes, that are of the class asked for, and what
        there is to say of the classifier."""
        if self.classifier is None or not self.labelled:
            return {}
        return dict(
            class_accuracy=float(np.mean(self.modes(pixel_features(images)) == self.labels)),
            classifier_accuracy=self.classifier_accuracy,
            classifier_images=self.classifier_images,
        )

    def modes(self, features: np.ndarray) -> np.ndarray:
        """The class of each by the classifier."""
        return np.zeros(len(features), int) if self.classifier is None else self.classifier.predict(features)

    def distances(self, images: np.ndarray) -> dict[str, float]:
        """Distances and coverage of images to the held-out ones."""
        return _compare(pixel_features(images), self.unseen)


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Pixels in [−1, 1], `[images features]`, or the means of squares of them, at most `SIDE` a side."""
    side = max(images.shape[1:3])
    factor = next(
        f for f in range(1, side + 1) if side <= f * SIDE and not any(n % f for n in images.shape[1:3])
    )
    small = reduce(to_float(images), "n (h f) (w g) c -> n h w c", "mean", f=factor, g=factor)
    return small.reshape(len(images), -1)


def _features(source: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of some images, and their labels, all 0 where there are none."""
    features, labels = [], []
    for start in range(0, len(rows), 1000):  # at once they could be larger than the memory
        part = source[rows[start : start + 1000]]
        features.append(pixel_features(part["image"]))
        labels.append(part.get("label", np.zeros(len(features[-1]), np.int32)))
    return np.concatenate(features), np.concatenate(labels)


def evaluate_images(
    task: Any, state: Any, config: Any, reference: Reference
) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of `config.evaluation.num_samples` samples against a `Reference`, and how they were made; the samples.

    Samples are rounded to bytes as a PNG would hold them. Distances, precision and recall (3 neighbours), density and
    coverage (5 neighbours) compare equal numbers: groups as large as the held-out set, averaged over at most
    `GROUPS` groups; `…_train` is the same of training images, what a perfect model would get. With
    `config.evaluation.features` also what `evaluate_features` says.
    """
    images = sample_images(task, state, reference.labels, config.sampling)
    real, unseen = reference.real, reference.unseen
    some = real[_some(len(real), GROUPS * len(unseen))]
    report = {
        **reference.accuracy(images),
        **beside_training(pixel_features(images), some, unseen),
        "nearest_neighbour_ratio": float(
            metrics.nearest_neighbour_ratio(pixel_features(images), real, unseen)
        ),
        "num_samples": len(images),
        "samples_per_distance": len(unseen),
        "train_images": len(real),
        "labels": config.evaluation.labels,
        "features": f"pixels in [-1, 1], at most {SIDE} a side, samples rounded to bytes",
        **task.describe_sampling(config.sampling),
        "weights": config.sampling.weights,
        "ema": config.sampling.weights != "params",
        "seed": config.sampling.seed,
        "skipped_files": {path: why for dataset in reference.splits for path, why in dataset.skipped.items()},
        "converted_files": dict(
            sum((Counter(dataset.conversions) for dataset in reference.splits), Counter())
        ),
    }
    return report | evaluate_features(images, config), images


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


def finish_report(
    task: Any, report: dict[str, Any], workdir: str | Path, step: int
) -> dict[str, Image.Image]:
    """Takes the pictures out of a report and returns them; adds the task's alarms, by the report and the last logged
    metrics until `step`."""
    pictures = {name: report.pop(name) for name in list(report) if isinstance(report[name], Image.Image)}
    rows = read_metrics(Path(workdir) / "metrics.jsonl")
    logged = [row for row in rows if row["step"] <= step and "steps_per_second" in row][-1:]
    measured = {name: value for name, value in report.items() if isinstance(value, float)}
    report["alarms"] = task.alarms(ChainMap(measured, *logged))
    return pictures


def print_report(report: dict[str, Any]) -> None:
    for sentence in report.get("alarms", ()):
        print(f"  ALARM: {sentence}")
    for name, value in report.items():
        if name == "alarms":
            continue
        print(f"  {name:24} {value:.4g}" if isinstance(value, float) else f"  {name:24} {value}")
