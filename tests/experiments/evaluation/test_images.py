"""The evaluation of samples, with arrays in place of a data set and of a trained network."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import images as evaluation
from experiments.evaluation.autoencoders import VGG16Distance
from experiments.evaluation.bounds import BoundBits
from experiments.evaluation.context import Context
from experiments.evaluation.few_steps import FewSteps
from experiments.evaluation.images import Samples
from experiments.evaluation.likelihoods import ExactBits
from experiments.evaluation.protocol import protocol_of
from experiments.inputs.conditions import Classes, Prompts, Unconditional
from experiments.inputs.datasets import Data
from genjax.data import Dataset, InMemory, load_dataset, to_float

HOW = dict(weights="ema", seed=0)


def striped(count, seed, num_classes=4):
    """Images of which a bright column is the class, ordered by class, as some data sets are."""
    labels = np.sort(np.arange(count) % num_classes)
    images = np.random.default_rng(seed).integers(0, 100, (count, 4, 4, 1))
    images[np.arange(count), :, labels] += 150
    return dict(image=images.astype(np.uint8), label=labels.astype(np.int32))


class Splits:
    """Data of two splits in memory."""

    def __init__(self, splits, num_classes):
        self.splits, self.num_classes = splits, num_classes

    def load(self, split):
        return Dataset(
            "striped",
            split,
            InMemory(self.splits[split]),
            num_classes=self.num_classes,
            skipped={f"{split}/broken.png": "truncated"},
            conversions={"grayscale": len(split)},
        )

    def train(self):
        return self.load("train")

    def held_out(self):
        return self.load("test")


class Drawer:
    """A model whose samples are given."""

    how = {"sampler": "none"}
    sampling = SimpleNamespace(weights="ema")

    def __init__(self, images):
        self.images = images

    def sample(self, labels):
        assert len(labels) == len(self.images)
        return self.images


@pytest.fixture
def report_of(monkeypatch):
    """Makes the report of given splits and samples."""

    def report_of(splits, images, num_classes, labels="balanced", **bounds):
        for name, value in bounds.items():
            monkeypatch.setattr(evaluation, name, value)
        data = Splits(splits, num_classes if "label" in splits["train"] else None)
        context = Context(data, None, Classes(num_classes), len(images), labels)
        report = Samples(context)(Drawer(images))
        assert report["num_samples"] == len(images) and report["sampler"] == "none"
        return report

    return report_of


def test_large_sets_are_cut_and_the_report_says_to_what(report_of):
    splits = dict(train=striped(900, seed=0), test=striped(300, seed=1))
    right = striped(80, seed=2)
    samples = right["image"][
        np.argsort(np.arange(80) % 20 * 4 + right["label"])
    ]  # labels 0, 1, 2, 3, 0, …
    report = report_of(splits, samples, 4, TRAIN_IMAGES=700, CLASSIFIER_IMAGES=60)
    expected = dict(
        num_samples=80,
        samples_per_distance=80,
        groups=1,
        groups_train=5,
        train_images=700,
        classifier_images=60,
    )
    assert {name: report[name] for name in expected} == expected
    # The first images of these sets are all of class 0, so every cut must draw at random.
    assert report["class_accuracy"] > 0.9 and report["classifier_accuracy"] > 0.9
    assert report["coverage"] > 0.9 and report["coverage_train"] > 0.9
    assert report["kernel_distance_train"] == pytest.approx(0, abs=0.02)
    again = report_of(splits, samples, 4, TRAIN_IMAGES=700, CLASSIFIER_IMAGES=60)
    assert again == report  # the draws' seed is fixed


def test_the_new_measures_see_a_collapsed_generator(report_of):
    splits = dict(train=striped(600, seed=0), test=striped(100, seed=1))
    one = np.repeat(splits["train"]["image"][:1], 100, axis=0)
    report = report_of(splits, one, 4)
    assert report["coverage"] < 0.1 < 0.9 < report["coverage_train"]
    assert report["kernel_distance"] > 0.1 > abs(report["kernel_distance_train"])
    assert report["nearest_neighbour_ratio"] == 0
    assert report["memorized_share"] == 1 > 0.1 > report["memorized_share_real"]
    assert report["class_accuracy"] == 0.25


def test_digits_are_used_whole(report_of):
    """1,437 training and 360 held-out digits; the figures are those of docs/results/index.md."""
    splits = {split: load_dataset("digits", split).source.arrays for split in ("train", "test")}
    report = report_of(splits, splits["train"]["image"][:1000], 10)
    expected = dict(
        samples_per_distance=360,
        groups=2,
        groups_train=3,
        train_images=1437,
        classifier_images=1437,
    )
    assert {name: report[name] for name in expected} == expected
    assert report["frechet_distance_train"] == pytest.approx(0.7176, abs=5e-5)
    assert report["classifier_accuracy"] == pytest.approx(0.9944, abs=5e-5)


def test_distances_at_infinitely_many_samples_have_no_bias():
    """Training digits have the held-out digits' distribution, so their true distance is near 0."""
    data = Data("digits", "train", "test", None, (8, 8, 1))
    measure = Samples(Context(data, None, Unconditional(), 1000), resamples=100)
    report = measure(Drawer(load_dataset("digits", "train").source[:1000]["image"]))
    assert abs(report["frechet_distance_extrapolated"]) < 0.1 < 0.6 < report["frechet_distance"]
    low, high = report["frechet_distance_interval"]
    assert -0.6 < low < report["frechet_distance_extrapolated"] < high < 0.6
    described = protocol_of(measure, SimpleNamespace(how=HOW, average=None), report)["uncertainty"]
    assert "FD∞" in described and "95 %: basic bootstrap, 100 resamples" in described
    few = dataclasses.replace(measure.context, num_samples=255)
    without = Samples(few)(Drawer(load_dataset("digits", "train").source[:255]["image"]))
    assert not {name for name in without if "extrapolated" in name or "interval" in name}
    with pytest.raises(ValueError, match="an interval of 64 features needs 256 samples; .* is 255"):
        Samples(few, resamples=100)
    held_out = dataclasses.replace(data, held_out_split="test[:255]")
    with pytest.raises(ValueError, match=r"needs 256 held-out examples; .*\[:255\]\) has 255"):
        Samples(dataclasses.replace(measure.context, data=held_out), resamples=100)


def test_few_steps_are_measured_as_samples_are():
    splits = dict(train=striped(400, seed=0), test=striped(60, seed=1))
    right = striped(80, seed=2)
    order = np.argsort(np.arange(80) % 20 * 4 + right["label"])
    whole, collapsed = right["image"][order], np.repeat(right["image"][:1], 80, axis=0)
    model = SimpleNamespace(sample=lambda labels, num_steps: whole if num_steps > 1 else collapsed)
    context = Context(Splits(splits, 4), None, Classes(4), 80)
    report = FewSteps(context, num_steps=(1, 4))(model)
    of_samples = Samples(context)(Drawer(whole))
    for name in ("class_accuracy", "frechet_distance", "recall"):
        assert report[f"{name}_at_4"] == of_samples[name]
    assert report["class_accuracy_at_1"] == 0.25 and report["recall_at_1"] < 0.1
    counts = report["num_samples"], report["samples_per_distance"], report["labels"]
    assert counts == (80, 60, "balanced") and len(report) == 9


def test_networks_of_prompts_are_refused():
    """Labels are numbers of prompts there. So classes would all stand for the first few prompts."""
    prompts = Prompts("minilm", 16, 384, 384, 1.0, ("a red apple",))
    context = Context(Data("digits", "train", "test", None, (8, 8, 1)), None, prompts, 20)
    for measure in (Samples, FewSteps, VGG16Distance, ExactBits, BoundBits):
        message = f"{measure.__name__}, which gives the network classes, .* takes prompts: take"
        with pytest.raises(ValueError, match=message):
            measure(context)


@pytest.mark.parametrize(
    ("condition", "labels"),
    [(Unconditional(), "balanced"), (Classes(4), "none"), (Classes(1), "balanced")],
)
def test_few_steps_have_no_class_accuracy_without_classes(condition, labels):
    """The data have classes, but nobody told the network which one to draw."""
    images = striped(40, seed=2)["image"]
    context = Context(
        Splits(dict(train=striped(80, 0), test=striped(40, 1)), 4), None, condition, 40, labels
    )
    report = FewSteps(context, num_steps=(4,))(SimpleNamespace(sample=lambda *_, **__: images))
    counts = {"num_samples", "samples_per_distance", "labels"}
    assert report.keys() == {"frechet_distance_at_4", "recall_at_4", *counts}


def test_features_of_large_images_are_means_of_squares():
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 64, 2), np.uint8)
    features = evaluation.pixel_features(images)
    assert features.shape == (3, 32 * 16 * 2)
    expected = images[1, 4:8, 8:12, 0].mean() / 127.5 - 1
    np.testing.assert_allclose(features.reshape(3, 32, 16, 2)[1, 1, 2, 0], expected, rtol=1e-5)
    small = images[:, :32, :28]
    np.testing.assert_array_equal(evaluation.pixel_features(small), to_float(small).reshape(3, -1))
    # 66 is not divisible by 3, which would leave 22, after 2, which would leave 33: it is
    assert evaluation.pixel_features(images[:, :66, :33]).shape == (3, 22 * 11 * 2)


def test_borders_that_squares_do_not_fill_are_left_out():
    """CelebA's 218×178 have no common divisor of 7 or more: 31×25 squares, a row and 3 columns."""
    images = np.random.default_rng(0).integers(0, 256, (2, 218, 178, 1), np.uint8)
    features = evaluation.pixel_features(images).reshape(2, 31, 25, 1)
    expected = images[1, 7:14, 8:15, 0].mean() / 127.5 - 1
    np.testing.assert_allclose(features[1, 1, 1, 0], expected, atol=1e-6)


def test_few_training_images_are_compared_with_as_many_held_out(report_of):
    splits = dict(train=striped(40, seed=0), test=striped(100, seed=1))
    report = report_of(splits, striped(90, seed=2)["image"], 4)
    assert (report["samples_per_distance"], report["groups"], report["groups_train"]) == (40, 2, 1)
    splits["train"] = striped(100, seed=3)
    cut = report_of(splits, striped(90, seed=2)["image"], 4, TRAIN_IMAGES=30)
    assert (cut["train_images"], cut["samples_per_distance"], cut["groups"]) == (30, 30, 3)
    features = [np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((50, 10, 30))]
    samples, real, unseen = features
    found = evaluation.compare_with_training(samples, real, unseen)
    assert found == evaluation.compare_with_training(samples, real, unseen[:10])


def test_images_without_classes(report_of):
    """As of a folder of pictures: nothing to classify, all else as with classes."""
    splits = {"train": striped(200, seed=0), "test": striped(80, seed=1)}
    samples = striped(80, seed=2)["image"]
    with_classes = report_of(splits, samples, 4)
    unlabelled = {name: {"image": split["image"]} for name, split in splits.items()}
    report = report_of(unlabelled, samples, 1)
    gone = {"class_accuracy", "classifier_accuracy", "classifier_images"}
    assert report == {name: value for name, value in with_classes.items() if name not in gone}


def test_labels_as_in_training(report_of):
    """A set has nine images of class 0 to one of class 1: nine samples in ten have class 0."""
    train = striped(400, seed=0, num_classes=2)
    unequal = np.r_[0:180, 200:220]  # the first half is class 0
    splits = dict(
        train={k: a[unequal] for k, a in train.items()}, test=striped(60, seed=1, num_classes=2)
    )
    zeros = striped(200, seed=2, num_classes=2)["image"][:100]
    # All samples are of class 0, so they are right as often as their label is 0: with
    # probability 0.9 ± 3·√(0.9·0.1/100).
    assert report_of(splits, zeros, 2, labels="training")["class_accuracy"] == pytest.approx(
        0.9, abs=0.09
    )
    assert report_of(splits, zeros, 2)["class_accuracy"] == 0.5
    with pytest.raises(ValueError, match="take one of balanced, training"):
        report_of(splits, zeros, 2, labels="uniform")


def test_files_left_out_or_converted_are_reported_of_both_splits(report_of):
    splits = dict(train=striped(80, seed=0), test=striped(40, seed=1))
    report = report_of(splits, striped(40, seed=2)["image"], 4)
    assert report["skipped_files"] == {
        "train/broken.png": "truncated",
        "test/broken.png": "truncated",
    }
    assert report["converted_files"] == {"grayscale": len("train") + len("test")}
