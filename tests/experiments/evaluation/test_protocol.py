"""The record of how figures were measured."""

import hashlib
from types import SimpleNamespace

import numpy as np

from experiments.evaluation import context
from experiments.evaluation.context import Context
from experiments.evaluation.images import Samples
from experiments.evaluation.likelihoods import ExactBits
from experiments.evaluation.protocol import protocol_of
from experiments.inputs.conditions import Classes
from experiments.inputs.datasets import Data
from genjax.pretrained.variables import parameters_digest
from genjax.training.ema import HalfLife

HOW = dict(sampler="euler", num_steps=50, guidance_scale=1.5, weights="ema", seed=3)


def samples_of(shape):
    data = Data("digits", "train", "test", None, shape)
    return Samples(Context(data, None, Classes(10), 500, "training"))


def test_every_choice_is_written():
    model = SimpleNamespace(how=HOW, average="HalfLife(steps=150.0)")
    figures = dict(num_samples=500, labels="training")
    assert protocol_of(samples_of((8, 8, 1)), model, figures) == dict(
        num_samples=500,
        samples_per_distance=None,
        labels="training",
        weights="ema",
        average="HalfLife(steps=150.0)",
        sampling=dict(sampler="euler", num_steps=50, guidance_scale=1.5),
        seed=3,
        features=dict(
            pixels=dict(
                network="none",
                parameters_sha256=None,
                rounding="uint8",
                resizing="none",
                antialiasing=None,
            )
        ),
        uncertainty=None,
    )
    counts = {"num_samples": 200, "samples_per_distance": 100}
    counted = protocol_of(samples_of((96, 64, 3)), model, counts)
    assert {name: counted[name] for name in counts} == counts
    assert counted["features"]["pixels"]["resizing"] == "means over 4×4 pixels"  # 3 divides no 64


def test_a_measure_of_held_out_images_has_no_samples_and_no_labels():
    """Its context has a thousand balanced samples, of which it draws none."""
    context = Context(Data("digits", "train", "test", None, (8, 8, 1)), None, Classes(10), 1000)
    pixels = np.zeros((20, 8, 8, 1), np.float32)
    functions = dict(
        log_probabilities=lambda images, labels: pixels[: len(images)] - 1,
        completions=lambda images, *_: images,
    )
    model = SimpleNamespace(how=HOW, average=None, functions=functions)
    measure = ExactBits(context, num_images=20)
    protocol = protocol_of(measure, model, measure(model))
    assert protocol["num_samples"] is protocol["labels"] is None


def test_an_evaluator_of_ones_own_needs_no_more_than_a_call():
    model = SimpleNamespace(how=HOW, average=None)
    protocol = protocol_of(lambda model: {}, model, {})
    assert protocol["num_samples"] is None and protocol["features"] == {}


def test_the_average_is_that_of_the_weights():
    task = SimpleNamespace(averages=(("ema", HalfLife(10.0)),))
    assert context._average(task, "ema") == "HalfLife(steps=10.0)"
    assert context._average(task, "posthoc_0.12") == "PowerFunction(width=0.12)"
    assert context._average(task, "params") is context._average(object(), "ema") is None


def test_a_digest_is_of_names_types_shapes_and_values():
    tree = {"b": {"kernel": np.arange(6.0).reshape(2, 3)}, "a": np.ones(2, np.float32)}
    text = b"a float32 (2,)\n" + np.ones(2, np.float32).tobytes()
    text += b"b/kernel float64 (2, 3)\n" + np.arange(6.0).tobytes()
    assert parameters_digest(tree) == hashlib.sha256(text).hexdigest()
    transposed = {"b": {"kernel": np.asfortranarray(tree["b"]["kernel"])}, "a": tree["a"]}
    assert parameters_digest(transposed) == parameters_digest(tree)  # memory's order is no matter
