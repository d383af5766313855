import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import autoencoders
from experiments.evaluation.autoencoders import (
    Originals,
    Reconstructions,
    VGG16Distance,
    latent_moments,
)
from experiments.evaluation.context import Context
from experiments.evaluation.protocol import protocol_of
from experiments.inputs.conditions import Classes
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.data import InMemory, to_float


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

    data.train, data.held_out = data.held_out, data.train
    generator = np.random.default_rng(0)
    held_out_rows, train_rows = generator.permutation(15), generator.permutation(60)[:15]
    expected = metrics.frechet_distance(
        flat(None, images[train_rows]), flat(None, images[held_out_rows])
    )
    np.testing.assert_allclose(Originals(data, 40).floor, expected)


def test_reconstructions_of_half_the_contrast(monkeypatch):
    """Half the amplitude is a quarter of the energy. Errors are those of the bytes, by NumPy."""
    images = 2 * np.random.default_rng(0).integers(0, 128, (30, 12, 12, 1)).astype(np.uint8)
    halve = lambda x: (x // 2 + 64, to_float(x)[:, :2, :3], None)
    of_distance = lambda decoded: float(decoded.mean())
    held_out = SimpleNamespace(examples=images, lpips=None, distance=of_distance, floor=0.5)
    monkeypatch.setattr(autoencoders, "originals_of", lambda data, count: held_out)
    monkeypatch.setattr(autoencoders, "require_lpips", lambda: None)
    monkeypatch.setattr(autoencoders, "_lpips", lambda _, x, y: np.abs(x - y).mean((1, 2, 3)))
    context = Context(None, None, None, 30)
    model = SimpleNamespace(functions=dict(autoencode=halve, num_codes=None), how={"weights": "a"})
    report = Reconstructions(context)(model)
    halved, error = images // 2 + 64, images / 2 - 64
    assert report["detail_kept"] == pytest.approx(0.25, rel=1e-5)  # of float32
    squares = (error**2).mean((1, 2, 3))
    assert report["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / squares)))
    assert report["lpips"] == pytest.approx(np.abs(error).mean() / 127.5, rel=1e-5)
    assert (report["fd_vgg16"], report["fd_vgg16_train"]) == (halved.mean(), 0.5)
    assert report["latent_mean"] == [pytest.approx(to_float(images)[:, :2, :3].mean(), rel=1e-4)]
    assert 0 < report["ssim"] < 1 and (report["num_samples"], report["weights"]) == (30, "a")
