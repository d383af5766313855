"""The measures of a GAN's discriminator, of logits that are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation.context import Context
from experiments.evaluation.gans import Discriminator
from experiments.inputs.conditions import Classes
from experiments.inputs.datasets import Data
from genjax.adversarial import non_saturating, relativistic
from genjax.data import Dataset, InMemory


class Splits:
    """Training images are darker than held-out ones, and classes have other shares."""

    name = "shades"

    def split(self, name, shade, num_first):
        images = np.random.default_rng(shade).integers(shade, shade + 50, (60, 4, 4, 1))
        labels = (np.arange(60) >= num_first).astype(np.int32)
        source = InMemory({"image": images.astype(np.uint8), "label": labels})
        return Dataset("shades", name, source, num_classes=2)

    def train(self):
        return self.split("train", 100, num_first=40)

    def held_out(self):
        return self.split("test", 200, num_first=20)


@pytest.mark.parametrize("objective", [relativistic, non_saturating])
def test_offsets_of_classes_that_the_objective_does_not_see_change_nothing(objective):
    """Pairs of training images differ by 2, those of held-out images by 1.75."""
    offset = 9.0 if objective.boundary is None else 0.0

    def logits(images, labels):
        brightness = (images.mean((1, 2, 3)) + 1) * 127.5
        own = np.where(brightness > 175, 0.75, np.where(brightness > 75, 1.0, -1.0))
        return own + offset * labels

    random = np.random.default_rng(0)
    model = SimpleNamespace(
        sample=lambda labels: random.integers(0, 50, (len(labels), 4, 4, 1), np.uint8),
        functions={"logits": logits, "objective": objective},
    )
    report = Discriminator(Context(Splits(), None, Classes(2), 60, "balanced"))(model)
    for name in ("train", "held_out", "samples"):
        assert report[f"accuracy/{name}"] == 1
    assert report["overfitting/r_v"] == pytest.approx(0.125, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "resizing"),
    [
        ("emoji", (64, 64, 3), {"pixels": "means over 2×2 pixels"}),
        ("ring_of_gaussians", (2,), {}),
    ],
)
def test_the_protocol_has_the_features_of_modes_and_duplicates(name, shape, resizing):
    data = Data(name, "train", "test", None, shape)
    protocols = Discriminator(Context(data, None, Classes(2), 60)).features()
    assert {name: each.resizing for name, each in protocols.items()} == resizing
