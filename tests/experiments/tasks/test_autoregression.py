"""The task of autoregression over pixels: its likelihood, samples, completions, and a whole run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_autoregression, fashion_autoregression
from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.evaluation.context import Context, Model
from experiments.evaluation.likelihoods import ExactBits
from experiments.inputs.datasets import Data
from genjax.autoregression import orders
from genjax.diffusion import sample_keys
from genjax.training.workdir import Config
from tests.experiments.arithmetic_coder import decoder, encode
from tests.experiments.launching import ROOT, run

KEY = jax.random.key(1)


def small_config():
    config = digits_autoregression.get_config("transformer")
    config.model.update(width=8, depth=1, num_heads=2, unroll=1)
    config.batch_size, config.num_steps = 8, 100
    return config


def batch(count=8):
    """Return random digits of 17 levels, stored as bytes, and their classes."""
    levels = np.random.default_rng(0).integers(0, 17, (count, 8, 8, 1))
    images = np.rint(levels * 255 / 16).astype(np.uint8)
    return {"image": images, "label": np.arange(count) % 10}, levels


@functools.cache
def trained_a_little():
    """Return a small task and its state after two steps, so that no layer is zero."""
    config = small_config()
    config.optimizer.update(schedule="constant", warmup=0.0, learning_rate=0.05)
    task = build(config)
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    losses = []
    for step in range(2):
        state, metrics = update(state, batch()[0], jax.random.fold_in(KEY, step))
        losses.append(float(metrics["loss"]))
    return task, state, losses


def test_the_loss_is_bits_per_dimension_of_17_levels():
    """At first all levels are equally likely; then the likelihood of the same pictures rises."""
    _, _, losses = trained_a_little()
    assert losses[0] == pytest.approx(np.log2(17), rel=1e-5)  # float32
    assert losses[1] < losses[0] - 0.001


@pytest.mark.parametrize("order", ["raster", "columns", "serpentine"])
def test_a_sub_pixel_depends_on_all_before_it_in_the_order_and_on_nothing_else(order):
    task, state, _ = trained_a_little()
    task = dataclasses.replace(task, order=getattr(orders, order))
    (_, levels), rows = batch(1), 3  # changes within the first rows suffice
    places = task.order(task.space.shape)
    changed = np.repeat(levels.reshape(1, -1), 1 + 8 * rows, axis=0)
    changed[1:, : 8 * rows] = (changed[1:, : 8 * rows] + np.eye(8 * rows, dtype=int)) % 17
    pictures = changed.reshape(-1, 8, 8, 1).astype(np.int32)
    labels = np.zeros(len(pictures), np.int32)
    nats = jax.jit(task.log_probability)(state.params, pictures, labels)
    nats = np.asarray(nats).reshape(len(pictures), -1)
    depends = nats[1:] != nats[0]
    rank = np.argsort(places)
    expected = rank[: 8 * rows, None] <= rank
    np.testing.assert_array_equal(depends, expected)


def test_samples_depend_on_their_own_index_and_their_film_ends_in_them():
    task, state, _ = trained_a_little()
    task = dataclasses.replace(task, order=orders.columns)
    generate = jax.jit(task.generate, static_argnames=("weights", "trajectory"))
    made_of = lambda indices, **options: np.asarray(
        generate(state, KEY, np.zeros(3, int), np.array(indices), 1.0, weights="ema", **options)
    )
    together = made_of(range(3))
    assert together.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(8 * (together + 1), np.rint(8 * (together + 1)), atol=1e-5)
    np.testing.assert_array_equal(made_of([4, 0, 9])[1], together[0])
    frames = made_of(range(3), trajectory=True)
    assert frames.shape == (9, 3, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], together)
    np.testing.assert_array_equal(frames[0], -1)
    np.testing.assert_array_equal(frames[3][:, :, :3], together[:, :, :3])  # columns came first
    np.testing.assert_array_equal(frames[3][:, :, 3:], -1)


def test_bits_and_completions_are_measured_on_held_out_images(monkeypatch):
    """The network takes columns first. Its own log-probabilities have the same mean."""
    task, state, _ = trained_a_little()
    task = dataclasses.replace(task, order=orders.columns)
    (data, levels), config = batch(20), small_config()
    held_out = type("Split", (), {"source": Rows(data)})
    monkeypatch.setattr(Data, "held_out", lambda self: held_out)
    context = Context(Data.from_config(config), task.space, task.condition, 20)
    model = Model(task, state, Config(temperature=1.0, weights="params", seed=0))
    report = ExactBits(context)(model)
    levels = levels.swapaxes(1, 2)  # as the network sees them
    outputs = jax.jit(task.network.apply)({"params": state.params}, levels, data["label"])
    nats = np.take_along_axis(np.asarray(jax.nn.log_softmax(outputs)), levels[..., None], -1)
    assert report["bits_per_dimension"] == pytest.approx(-nats.mean() / np.log(2), rel=1e-5)
    each = -nats.reshape(20, -1).mean(1) / np.log(2)
    error = each.std(ddof=1) / np.sqrt(20)
    assert report["bits_per_dimension_error"] == pytest.approx(error, rel=1e-3)
    assert report["likelihood_images"] == 20 and report["completions"].size[0] > 0
    keys = sample_keys(KEY, jnp.arange(20))
    completed, others = (
        model.functions["completions"](data["image"], data["label"], each, 3)
        for each in (keys, keys[::-1])
    )
    np.testing.assert_array_equal(completed[:, :, :3], data["image"][:, :, :3])
    for different in (data["image"], others):
        assert np.any(completed[:, :, 3:] != different[:, :, 3:])


class Rows:
    """A source of examples."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples["label"])

    def __getitem__(self, rows):
        return {name: a[rows] for name, a in self.examples.items()}


def test_an_arithmetic_coder_needs_the_reported_bits_and_decodes_losslessly():
    """Eight pictures, whose sub-pixels are coded in turn by the laws of the cached network."""
    task, state, _ = trained_a_little()
    data, levels = batch()
    variables, tokens = {"params": state.params}, levels.reshape(8, 64)
    labels = jnp.asarray(data["label"])
    apply = functools.partial(task.network.apply, variables)
    step = jax.jit(functools.partial(apply, method="step"))

    def laws():
        """Yield the probabilities of each place, and receive its levels."""
        outputs, cache = jax.jit(functools.partial(apply, method="prefill"))(labels)
        for place in range(64):
            read = yield np.asarray(jax.nn.softmax(outputs), np.float64)
            if place < 63:
                outputs, cache = step(cache, jnp.asarray(read, jnp.int32), jnp.int32(place))

    code = encode(laws(), tokens)
    decoded = decoder(code).decode(laws(), tokens.shape)
    np.testing.assert_array_equal(decoded, tokens)
    nats = jax.jit(task.log_probability)(state.params, jnp.asarray(levels), labels)
    bits = -float(nats.sum()) / np.log(2)
    assert len(code) == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("digits", dict(model__name="PixelRN"), "config.model.name is 'PixelRN'.*PixelRNN"),
        ("digits", dict(space__name="Pixels"), "space.name is 'Pixels', which has no levels"),
        ("digits", dict(data__levels=None), "config.data.levels is None; set it"),
        ("digits", dict(data__levels=300), "config.data.levels is 300; .* 2 to 256"),
        (
            "digits",
            dict(likelihood__name="mixture_of_logistics"),
            r"PixelTransformer, which returns \[1, 8, 8, 1, 17\].*reads \[1, 8, 8, 30\]",
        ),
        ("digits", dict(order="random"), "config.order is 'random'.*raster"),
        (
            "digits",
            dict(order="columns", data__image_shape=(4, 8, 1)),
            r"config.order is 'columns', and config.data.image_shape \(4, 8, 1\) is not square",
        ),
        ("digits", dict(sampling__temperature=-1.0), "temperature is at least 0"),
        ("digits", dict(model__num_heads=5), "num_heads is 5 and config.model.width 8"),
        (
            "digits",
            dict(condition=base.captions()),
            "PixelTransformer, which cannot be applied to levels .* config.condition's example",
        ),
        (
            "fashion:pixelcnn_pp",
            dict(data__image_shape=(30, 28, 1)),
            "sides that are no multiples of 4, which PixelCNNPlusPlus needs",
        ),
    ],
)
def test_mistakes_are_named(name, changes, words):
    fashion = "fashion" in name
    config = fashion_autoregression.get_config("pixelcnn_pp") if fashion else small_config()
    for path, value in changes.items():
        *part, field = path.split("__")
        (config[part[0]] if part else config)[field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


def test_an_opened_run_refuses_a_negative_temperature():
    with pytest.raises(ValueError, match="temperature is at least 0, and 0 is greedy; got -0.5"):
        build(small_config()).sampling_inputs(Config(temperature=-0.5))


def test_without_classes_the_network_has_none():
    config = small_config()
    config.condition = dict(name="Unconditional", num_rows=10)
    assert build(config).network.num_classes == 0
    assert build(small_config()).network.num_classes == 10


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path):
    workdir = tmp_path / "run"
    every = [
        f"--config.{name}=10"
        for name in ("log_every", "checkpoint.every", "sampling.every", "evaluation.every")
    ]
    result = run(
        "train", f"--config={ROOT}/configs/digits_autoregression.py:rnn", f"--workdir={workdir}",
        "--config.num_steps=10", "--config.optimizer.warmup=5", "--config.snapshot_every=10",
        "--config.model.width=8", "--config.evaluation.num_samples=60", *every,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((workdir / "report.json").read_text())
    assert report["likelihood_images"] == 360 and 0 < report["bits_per_dimension"] < 4.1
    assert {"class_accuracy", "frechet_distance", "temperature"} <= report.keys()
    for name in ("samples.png", "decoding.gif", "report.html", "completions/step_000010.png"):
        assert (workdir / name).exists(), name
    assert "Surprise and completions" in (workdir / "report.html").read_text()
