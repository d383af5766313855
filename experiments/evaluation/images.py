"""Measures of how accurate, varied and new samples are.

A classifier measures the accuracy. Distances between pixels measure the rest.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from einops import reduce

from experiments.evaluation.context import Context, Model, described_files
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.uncertainty import check_resamples, uncertainty
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.data import to_float

# Bounds on the time and the memory of an evaluation, whatever the size of the data set.
TRAIN_IMAGES, CLASSIFIER_IMAGES, GROUPS, SIDE = 60_000, 10_000, 5, 32


def draw(total: int, count: int) -> np.ndarray:
    """Return indices of at most `count` of `total`: always the same draw, in random order."""
    return np.random.default_rng(0).permutation(total)[:count]


def compare(features: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Return the mean metrics of disjoint groups of features, each as large as `unseen`."""
    size, rows = len(unseen), []
    for start in range(0, min(len(features), GROUPS * size) - size + 1, size):
        group = features[start : start + size]
        precision, recall = metrics.precision_recall(group, unseen)
        density, coverage = metrics.density_coverage(group, unseen)
        rows.append(
            {
                "frechet_distance": metrics.frechet_distance(group, unseen),
                "kernel_distance": metrics.kernel_distance(group, unseen),
                **dict(precision=precision, recall=recall, density=density, coverage=coverage),
            }
        )
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"groups": len(rows)}


def compare_with_training(
    samples: np.ndarray, real: np.ndarray, unseen: np.ndarray
) -> dict[str, float]:
    """Return distances and coverage of samples to held-out features, and of training features.

    The training features' figures end in `_train`: a perfect model would reach them. At most
    `GROUPS` groups, each as large as the held-out set, are averaged. If there are more held-out
    than training features, the first of them are compared.
    """
    unseen = unseen[: len(real)]
    measured = {
        "": compare(samples, unseen),
        "_train": compare(real[: GROUPS * len(unseen)], unseen),
    }
    names = measured[""]
    return {name + suffix: row[name] for name in names for suffix, row in measured.items()}


class Reference:
    """Real images that samples are compared with, and a classifier of them.

    Features are pixels in [−1, 1]. Images of more than `SIDE` pixels a side are first averaged over
    squares of pixels. If the data have several classes, the classifier is a support vector machine
    fitted to at most `CLASSIFIER_IMAGES` training images. Nearest neighbours are found among at
    most `TRAIN_IMAGES` images. Larger sets are cut by a draw with a fixed seed. Held-out images are
    no more than training images, since distances compare equal numbers.

    Attributes:
        real, unseen: features of training and of held-out images.
        examples: floats and labels of equally many training and held-out images.
        train_labels: of `real`.
        num_modes: classes of the data.
    """

    def __init__(self, data: Data, count: int):
        from sklearn.svm import SVC  # slow to import

        self.datasets = data.train(), data.held_out()
        train, held_out = (dataset.source for dataset in self.datasets)
        train_rows = draw(len(train), TRAIN_IMAGES)
        held_out_rows = draw(len(held_out), min(count, len(train_rows)))
        self.real, self.train_labels = _features(train, train_rows)
        self.unseen, held_out_labels = _features(held_out, held_out_rows)
        cut = train_rows[: len(held_out_rows)]
        self.examples = (
            (to_float(train[cut]["image"]), self.train_labels[: len(cut)]),
            (to_float(held_out[held_out_rows]["image"]), held_out_labels),
        )
        self.num_modes = self.datasets[0].num_classes or 1
        self.classifier = None
        if self.num_modes > 1:
            fitted = draw(len(self.real), CLASSIFIER_IMAGES)
            self.classifier_images = len(fitted)
            self.classifier = SVC(C=10.0).fit(self.real[fitted], self.train_labels[fitted])
            self.classifier_accuracy = float(self.classifier.score(self.unseen, held_out_labels))

    floats = staticmethod(to_float)

    def features(self, images: np.ndarray) -> np.ndarray:
        return pixel_features(images)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
        """Return the share of images that the classifier puts into their class, and facts of it."""
        if self.classifier is None:
            return {}
        return dict(
            class_accuracy=float(np.mean(self.modes(pixel_features(images)) == labels)),
            classifier_accuracy=self.classifier_accuracy,
            classifier_images=self.classifier_images,
        )

    def modes(self, features: np.ndarray) -> np.ndarray:
        """Return the class of each example, by the classifier."""
        if self.classifier is None:
            return np.zeros(len(features), int)
        return self.classifier.predict(features)


image_reference = functools.lru_cache(maxsize=2)(Reference)  # computed once for each data set


def reduction(height: int, width: int) -> int:
    """Return the side of the squares of pixels that `pixel_features` averages.

    At most `SIDE` of them fill a side. A common divisor of both sides is taken if it is less than
    twice the least side that does so, and else that least side.
    """
    least = -(-max(height, width) // SIDE)
    divisors = (f for f in range(least, 2 * least) if height % f == width % f == 0)
    return next(divisors, least)


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Return pixels in [−1, 1], `[images features]`.

    Squares of pixels are averaged, so that no side is longer than `SIDE`. Where squares do not fill
    a side, its border is left out.
    """
    height, width = images.shape[1:3]
    factor = reduction(height, width)
    top, left = height % factor // 2, width % factor // 2
    rows, columns = height // factor * factor, width // factor * factor
    whole = to_float(images[:, top : top + rows, left : left + columns])
    small = reduce(whole, "n (h f) (w g) c -> n h w c", "mean", f=factor, g=factor)
    return small.reshape(len(images), -1)


def pixel_protocol(data: Data) -> dict[str, FeatureProtocol]:
    """Return how images of a data set become `pixel_features`, for the protocol."""
    factor = reduction(*data.image_shape[:2])
    if factor == 1:
        return {"pixels": FeatureProtocol("none")}
    resizing = f"means over {factor}×{factor} pixels"
    return {"pixels": FeatureProtocol("none", resizing=resizing, antialiasing=True)}


def _features(source: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of some images; labels are 0 if the data have none."""
    features, labels = [], []
    for start in range(0, len(rows), 1000):  # at once they could be larger than the memory
        part = source[rows[start : start + 1000]]
        features.append(pixel_features(part["image"]))
        labels.append(part.get("label", np.zeros(len(features[-1]), np.int32)))
    return np.concatenate(features), np.concatenate(labels)


@dataclass(frozen=True)
class Samples:
    """Measure class accuracy, Fréchet and kernel distance, precision, recall, density and coverage.

    Samples are rounded to bytes, as in a PNG. Distances, precision and recall (3 neighbours),
    density and coverage (5 neighbours) compare equal numbers: groups as large as the held-out set,
    averaged over at most `GROUPS` groups. `…_train` is the same measure of training images.

    If there are four times as many samples and held-out images as features, the Fréchet distance is
    also extrapolated to infinitely many (FD∞), as `frechet_distance_extrapolated`. Its interval of
    95 %, `frechet_distance_interval`, comes from resampling.

    The nearest-neighbour ratio and the memorized share do not find copies of mirrored training
    images.

    Attributes:
        resamples: of the interval, each of which takes as long as a distance; 0 leaves it out.
    """

    context: Context
    resamples: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 6  # of density and coverage: an example and 5 neighbours

    def __post_init__(self):
        self.context.check_classes("Samples")
        if self.resamples:
            blank = np.zeros((1, *self.context.data.image_shape), np.uint8)
            width = pixel_features(blank).shape[1]
            check_resamples("Samples", self.resamples, self.context, width, takes_held_out=True)

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        return pixel_protocol(self.context.data)

    def __call__(self, model: Model) -> dict[str, Any]:
        context = self.context
        reference = image_reference(context.data, context.num_samples)
        labels = context.draw_labels(lambda: reference.train_labels)
        images = model.sample(labels)
        real, unseen, features = reference.real, reference.unseen, pixel_features(images)
        equal = features[: len(unseen)], unseen[: len(features)]
        return {
            **(reference.accuracy(images, labels) if context.class_conditional else {}),
            **compare_with_training(features, real[draw(len(real), GROUPS * len(unseen))], unseen),
            **uncertainty(
                "frechet_distance",
                metrics.extrapolated_frechet_distance,
                metrics.frechet_distance,
                *equal,
                resamples=self.resamples,
            ),
            **metrics.memorization(features, real, unseen)._asdict(),
            "num_samples": len(images),
            "samples_per_distance": len(unseen),
            "train_images": len(real),
            "labels": context.labels,
            "features": f"pixels in [-1, 1], at most {SIDE} a side, samples rounded to bytes",
            **model.how,
            "ema": model.sampling.weights != "params",
            **described_files(reference.datasets),
        }
