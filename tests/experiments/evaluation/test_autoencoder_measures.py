import json
from types import SimpleNamespace

import numpy as np

from experiments.evaluation import autoencoders
from experiments.evaluation.autoencoders import Originals, VGG16Distance, latent_moments
from experiments.evaluation.context import Context
from experiments.evaluation.protocol import protocol_of
from experiments.inputs.conditions import Classes
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.data import InMemory


def test_small_deviations_of_latents_keep_their_digits():
    """A collapsed channel and another keep their deviations in a report's JSON."""
    latents = np.random.default_rng(0).standard_normal((500, 2, 2, 2), np.float32)
    latents = latents * np.float32([2e-5, 3.0]) + np.float32([1e-5, -2.0])
    moments = json.loads(json.dumps(latent_moments(latents)))
    axes = (0, 1, 2)
    latents = latents.astype(np.float64)
    # 1e-3: unbiased deviations are 1/4,000 larger.
    np.testing.assert_allclose(moments["latent_deviation"], latents.std(axes), rtol=1e-3)
    np.testing.assert_allclose(moments["latent_mean"], latents.mean(axes), rtol=1e-4)
    assert all(len(f"{value:.9g}") <= 12 for values in moments.values() for value in values)


def test_the_protocol_says_how_many_samples_a_distance_compares(monkeypatch):
    """The config has a thousand samples, and there are 360 held-out digits."""
    held_out = SimpleNamespace(examples=np.zeros(360), distance=lambda images: 1.0, floor=0.5)
    monkeypatch.setattr(autoencoders, "originals_of", lambda data, count: held_out)
    monkeypatch.setattr(autoencoders, "require_lpips", lambda: None)
    monkeypatch.setattr(VGG16Distance, "features", lambda self: {})
    data = Data("digits", "train", "test", None, (8, 8, 1))
    measure = VGG16Distance(Context(data, None, Classes(10), 1000))
    how = dict(weights="ema", seed=0)
    model = SimpleNamespace(sample=np.zeros_like, functions={}, how=how, average=None)
    protocol = protocol_of(measure, model, measure(model))
    assert (protocol["num_samples"], protocol["samples_per_distance"]) == (1000, 360)


def test_few_training_images_are_compared_with_as_many_held_out(monkeypatch):
    """Distances of unequal numbers have unequal biases."""
    flat = lambda self, examples: examples.reshape(len(examples), -1) / 255
    monkeypatch.setattr(autoencoders, "load_lpips", lambda: (None, None))
    monkeypatch.setattr(Originals, "features_of", flat)
    images = np.random.default_rng(0).integers(0, 256, (60, 2, 2, 1)).astype(np.uint8)
    train, held_out = (
        SimpleNamespace(source=InMemory({"image": x})) for x in (images[:15], images)
    )
    data = SimpleNamespace(train=lambda: train, held_out=lambda: held_out, feature="image")
    originals = Originals(data, 40)
    chosen = images[np.random.default_rng(0).permutation(60)[:15]]
    np.testing.assert_array_equal(originals.examples, chosen)
    expected = metrics.frechet_distance(flat(None, images[:15]), flat(None, chosen))
    np.testing.assert_allclose(originals.floor, expected)
    assert originals.distance(images) == metrics.frechet_distance(
        flat(None, images[:15]), flat(None, chosen)
    )
