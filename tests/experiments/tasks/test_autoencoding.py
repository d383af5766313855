"""The task of autoencoders: its loss, its discriminator, and independence of devices and stops."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import emoji_autoencoder
from experiments.configuration.runs import build
from experiments.evaluation import autoencoders as evaluators
from experiments.evaluation.context import in_batches
from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment, split_pictures
from experiments.launch.reports import alarms as alarms_of
from experiments.tasks.autoencoding import Adversary, reconstruct
from experiments.tasks.penalties import Regularizer
from genjax.data import to_float
from genjax.models.autoencoders.autoencoder_dc import AutoencoderDC, Stage
from genjax.models.encoders.vgg16 import VGG16
from genjax.nn.quantizers import VectorQuantizer
from genjax.training import Checkpoints
from genjax.training.pictures import paired_grid
from genjax.training.sampling import sample
from tests.experiments.autoencoder_run import (
    CODES,
    NARROW,
    START,
    WARMUP,
    batch,
    make,
    narrow_lpips,
    small_config,
)
from tests.virtual_devices import lines_of

QUICK = {
    "xla_backend_optimization_level": 0
}  # compiles in less time, for programs that run a few times
KEY = jax.random.key(1)


class Made(NamedTuple):
    config: object
    task: object
    frozen: tuple
    state: object
    update: object

    def after(self, state, steps, start=0):
        """The state after more steps on batches `start`, …, and the metrics of each."""
        history = []
        for step in range(start, start + steps):
            state, metrics = self.update(state, batch(self.config, step), KEY, *self.frozen)
            history.append(metrics)
        return state, history


@functools.cache
def made(choice):
    config = small_config(choice)
    task, frozen = make(config)
    state = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))
    return Made(config, task, frozen, state, jax.jit(task.update, compiler_options=QUICK))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def gradient(player, before):
    """That of the last step: what Adam, with its first moment's decay of ½, added to the moment."""
    moments = jax.device_get(
        [optax.tree.get(each.optimizer_state, "mu") for each in (player, before)]
    )
    return jax.tree.map(lambda new, old: 2 * (new - old / 2), *moments)


def assert_close(found, expected, rtol):
    """By the norm of what differs, as parts of a gradient may be 0."""
    difference, size = (
        np.sqrt(sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(lambda a, b: a - np.asarray(b), found, expected), expected)
    )
    assert difference <= rtol * size, (difference, size)


class WrittenOut(NamedTuple):
    metrics: dict
    gradient: object
    of_discriminator: object
    balance: object  # norms at the last layer: of what is unlike, and of the weighted displeasure


@functools.cache
def written_out():
    """All losses of the KL autoencoder and its discriminator in one place, by whole derivatives."""
    config, task, frozen, *_ = made("kl")
    network, judge, adversary = task.network, task.adversary.network, config.adversary
    weigh = config.weights

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(state, images, key, started):
        x = to_float(images)
        noise_key = jax.random.split(key)[1]
        kept = state.discriminator.kept

        def logits(params, images):
            return judge.apply(
                {"params": params, **kept}, images, train=True, mutable=["batch_stats"]
            )[0]

        def losses(params):
            mean, log_variance = network.apply({"params": params}, x, method="encode")
            z = mean + jnp.exp(log_variance) ** 0.5 * jax.random.normal(noise_key, mean.shape)
            y = network.apply({"params": params}, z, method="decode")
            nats = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
            return {
                "loss/reconstruction": jnp.mean(jnp.abs(x - y)),
                "loss/perceptual": task.perceptual.apply(*frozen, x, y).mean(),
                "loss/divergence": nats.sum() / x.size,
                "loss/adversarial": -logits(state.discriminator.params, y).mean(),
            }, y

        def unlike(each):
            return each["loss/reconstruction"] + weigh.perceptual * each["loss/perceptual"]

        params = state.autoencoder.params

        def of_last_layer(layer):
            each, _ = losses(params | {"decoder": params["decoder"] | {"conv_out": layer}})
            return unlike(each), each["loss/adversarial"]

        by_last_layer = jax.jacrev(of_last_layer)(params["decoder"]["conv_out"])
        by_unlike, by_displeasure = map(optax.tree.norm, by_last_layer)
        weight = started * adversary.weight * by_unlike / (by_displeasure + 1e-4)

        def total(params):
            each, y = losses(params)
            loss = unlike(each) + weigh.divergence * each["loss/divergence"]
            return loss + jax.lax.stop_gradient(weight) * each["loss/adversarial"], (each, y)

        (loss, (metrics, y)), by_params = jax.value_and_grad(total, has_aux=True)(params)

        def of_discriminator(params):
            real, fake = logits(params, x), logits(params, y)
            hinge = jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean()
            slopes = jax.grad(lambda x: logits(params, x).mean((1, 2)).sum())(x)
            penalty = jnp.square(slopes).sum((1, 2, 3)).mean()
            added = adversary.r1.weight * adversary.r1.every * penalty
            return hinge + added, {"loss/discriminator": hinge, "regularizer/r1": added}

        by_judge, more = jax.grad(of_discriminator, has_aux=True)(state.discriminator.params)
        metrics |= more | {"loss": loss, "weight/adversarial": weight}
        return WrittenOut(metrics, by_params, by_judge, (by_unlike, weight * by_displeasure))

    return compute


def judging():
    """Return a state whose discriminator's gradient is large compared with its weight, 1e-4."""
    state = jax.device_get(made("kl").state)
    sharper = jax.tree.map(lambda a: 4 * a, state.discriminator.params)
    return state.replace(
        discriminator=state.discriminator.replace(params=sharper), step=jnp.int32(START)
    )


@pytest.mark.slow
def test_the_gradients_are_those_of_the_written_out_losses():
    """At a step with R1: distances and discriminator have equal gradients at the last layer."""
    config, _, frozen, _, update = made("kl")
    state, images = judging(), batch(config, 0)["image"]
    after, metrics = update(state, {"image": images}, KEY, *frozen)
    expected = written_out()(state, images, KEY, 1.0)
    for name, value in expected.metrics.items():  # float32 sums in another order; 1e-6 was seen
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # 1e-5 was seen
    assert_close(gradient(after.autoencoder, state.autoencoder), expected.gradient, rtol=1e-4)
    assert_close(
        gradient(after.discriminator, state.discriminator), expected.of_discriminator, rtol=1e-4
    )
    by_unlike, weighted = expected.balance
    np.testing.assert_allclose(weighted, 0.5 * by_unlike, rtol=0.02)  # but for the 1e-4
    assert (
        metrics["regularizer/r1"] > 0.01 * metrics["loss/discriminator"]
    )  # so that the above has seen it


@pytest.mark.slow
def test_before_its_start_the_discriminator_stays_and_means_nothing_and_then_it_moves():
    config, task, frozen, first, update = made("kl")
    state = first
    for step in range(START):
        before, images = state, batch(config, step)["image"]
        state, metrics = update(state, {"image": images}, KEY, *frozen)
        assert metrics["weight/adversarial"] == 0
        expected = written_out()(before, images, KEY, 0.0)
        np.testing.assert_allclose(metrics["loss"], expected.metrics["loss"], rtol=1e-5)
        assert_close(gradient(state.autoencoder, before.autoencoder), expected.gradient, rtol=1e-4)
    assert same(state.discriminator, first.discriminator)  # parameters, optimizer, batch statistics
    assert not same(state.autoencoder.params, first.autoencoder.params)
    told = []
    for _ in range(30):
        state, metrics = update(state, {"image": images}, KEY, *frozen)
        told.append(metrics)
        assert metrics["weight/adversarial"] > 0
    for part in ("params", "kept", "optimizer_state"):
        assert not same(getattr(state.discriminator, part), getattr(first.discriminator, part))
    accuracy = [each["accuracy/real"] + each["accuracy/fake"] for each in told]
    assert accuracy[0] < 1.3 and accuracy[-1] > 1.7  # both right are 2
    assert told[-1]["loss/discriminator"] < 0.8 * told[0]["loss/discriminator"]
    # its own steps count for its learning rate
    rates = [each["learning_rate_of_discriminator"] for each in told]
    np.testing.assert_allclose(rates, 1e-3 * np.minimum(np.arange(30) / WARMUP, 1), rtol=1e-6)
    # R1 at every other step, as the step counts
    penalized = [bool(each["regularizer/r1"] > 0) for each in told]
    assert penalized == [True, False] * 15


def test_the_burn_in_of_r1_begins_with_the_discriminator():
    """Half a cosine from 0.1 to 0.3 in 4 steps: 0.1, 0.2, 0.3 (Huang et al. 2024, appendix D)."""
    config, task, _, state, _ = made("kl")
    r1 = Regularizer(weight=0.1, every=2, end_weight=0.3, burn_in=4)
    task = dataclasses.replace(task, adversary=dataclasses.replace(task.adversary, r1=r1))
    x = to_float(batch(config, 0)["image"])
    update = jax.jit(task._update_discriminator, compiler_options=QUICK)
    steps = (0, START, START + 2, START + 4, START + 6)
    added = [update(state.discriminator, step, x, -x)[1]["regularizer/r1"] for step in steps]
    np.testing.assert_allclose(np.array(added) / added[0], [1, 1, 2, 3, 3], rtol=1e-5)


def test_without_a_term_it_is_left_out():
    """A deterministic bottleneck, no LPIPS, no discriminator: the loss is the distance alone."""
    config = small_config("kl")
    config.model = dict(name="AutoencoderTiny", latent_channels=2)
    config.model.update(width=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    config.weights, config.adversary.weight = dict(perceptual=0.0), 0.0
    task = build(config)
    assert task.frozen() == ()
    state = jax.eval_shape(task.init, KEY)
    assert state.discriminator is None and set(state.params) == {"autoencoder"}
    _, metrics = jax.eval_shape(task.update, state, batch(config, 0), KEY)
    assert {name for name in metrics if name.startswith("loss")} == {"loss", "loss/reconstruction"}


def test_quantized_gradients_pass_straight_through():
    """Gradients are those of a loss where the difference between codes and latents is a constant.

    Codes are unit vectors. They are moving averages of the latents that chose them.
    """
    config, task, _, state, update = made("vq")
    images = batch(config, 0)["image"]
    network, kept = task.network, state.autoencoder.kept
    old = kept["codebook"]["quantizer"]["codes"]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(params):
        unit = lambda a: a / jnp.linalg.norm(a, axis=-1, keepdims=True)

        def loss(params):
            apply = functools.partial(network.apply, {"params": params, **kept})
            x = jnp.asarray(to_float(images))
            u = unit(apply(x, method="encode"))
            indices = jnp.argmax(u @ unit(old).T, axis=-1)
            error = jax.lax.stop_gradient(unit(old)[indices] - u)
            commitment = jnp.mean((u - jax.lax.stop_gradient(u + error)) ** 2)
            y = apply(u + error, method="decode")
            return jnp.mean(jnp.abs(x - y)) + 0.25 * commitment, (commitment, u, indices)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (commitment, u, indices)), by_params = compute(state.autoencoder.params)
    after, metrics = update(state, {"image": images}, KEY)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)  # float32
    np.testing.assert_allclose(metrics["loss/commitment"], commitment, rtol=1e-5)
    assert_close(gradient(after.autoencoder, state.autoencoder), by_params, rtol=1e-4)  # 3e-5

    # appendix A.1 of van den Oord et al. 2017 with γ = .99, counts in units of an equal share, all
    # 1 before
    u, indices, old = np.reshape(np.float64(u), (-1, 2)), np.ravel(indices), np.asarray(old)
    for code in range(CODES):
        chose = u[indices == code]
        share = CODES * len(chose) / len(u)
        latents = chose.mean(0) if len(chose) else 0
        mean = (0.99 * old[code] + 0.01 * share * latents) / (0.99 + 0.01 * share)
        np.testing.assert_allclose(
            after.autoencoder.kept["codebook"]["quantizer"]["codes"][code],
            mean,
            rtol=1e-5,
            atol=1e-7,
        )  # float32
    counts = np.bincount(indices, minlength=CODES) / len(indices)
    np.testing.assert_allclose(metrics["codebook/batch_usage"], np.mean(counts > 0))
    entropy = -np.sum(counts[counts > 0] * np.log(counts[counts > 0]))
    np.testing.assert_allclose(metrics["codebook/batch_perplexity"], np.exp(entropy), rtol=1e-5)


def test_codes_move_in_training_alone_and_are_averaged():
    _, task, _, first, _ = made("vq")
    state, _ = made("vq").after(first, 1)
    codes = lambda variables: np.asarray(variables["codebook"]["quantizer"]["codes"])
    new, average, old = (
        codes(each)
        for each in (state.autoencoder.variables, state.averages["ema"], first.averages["ema"])
    )
    assert np.abs(new - old).max() > 1e-3
    np.testing.assert_allclose(
        average, 0.1 * old + 0.9 * new, rtol=1e-5
    )  # as averages begin; float32
    # what evaluation and samples are made of is a function of variables that are not changed
    x = jnp.zeros((1, 16, 16, 3))
    variables = task.variables(state, "params")
    _, (kept, _) = jax.jit(
        lambda variables: reconstruct(task.network, variables["params"], variables, x, KEY),
        compiler_options=QUICK,
    )(variables)
    assert same(kept, state.autoencoder.kept)


def test_batch_norms_of_both_halves_learn_in_training_alone():
    stages = Stage(8, 1), Stage(8, 1, norm="batch")
    network = AutoencoderDC(4, stages, stages)
    x = jax.random.normal(KEY, (2, 16, 16, 3))
    variables = network.init(KEY, x)
    run = lambda train: reconstruct(network, variables["params"], variables, x, KEY, train)
    (y, _), (kept, _) = run(True)
    expected, updated = network.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, kept, dict(updated))
    assert not same(kept["batch_stats"], variables["batch_stats"])
    (y, _), (kept, _) = run(False)
    np.testing.assert_allclose(y, network.apply(variables, x), atol=1e-5)
    assert same(kept["batch_stats"], variables["batch_stats"])


def test_an_r1_that_grows_from_nothing_is_kept():
    config = emoji_autoencoder.get_config("kl_adversarial")
    assert Adversary.from_config(config).r1 is None
    config.adversary.r1 = dict(weight=0.0, end_weight=1.0, burn_in=10)
    assert Adversary.from_config(config).r1.end_weight == 1.0


@pytest.mark.parametrize("choice", ["kl", "vq"])
def test_resumed_in_the_middle_it_is_bitwise_the_same(tmp_path, choice):
    """The discriminator starts after the interruption, and there is a codebook."""
    this = made(choice)
    middle, _ = this.after(this.state, 1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, middle)
        checkpoints.wait()
        resumed = checkpoints.restore(1, jax.eval_shape(this.task.init, KEY))
    resumed = jax.device_get(resumed)  # so that the same compiled program takes it
    end, history = this.after(middle, 3, start=1)
    resumed, again = this.after(resumed, 3, start=1)
    assert same(history, again) and same(end, resumed)
    assert int(end.step) == 4


@pytest.mark.slow
def test_a_video_is_reconstructed_frame_by_frame_and_flipped_as_a_whole():
    """Two latent frames stand for three frames, and the discriminator sees each of the three."""
    config, task, _, state, _ = made("video")
    video = batch(config, 0)["video"]
    after, (metrics,) = made("video").after(state.replace(step=jnp.int32(START)), 1)
    flip_key, code_key = jax.random.split(KEY)
    flipped = np.asarray(jax.random.bernoulli(flip_key, shape=(len(video), 1, 1, 1)))[..., None]
    assert 0 < flipped.sum() < len(video)
    x = to_float(np.where(flipped, video[:, :, :, ::-1], video))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(x):
        variables = state.autoencoder.variables
        mean, log_variance = task.network.apply(variables, x, method="encode")
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(code_key, mean.shape)
        y = task.network.apply(variables, z, 3, method="decode")
        judge = lambda frames: task.adversary.network.apply(state.discriminator.variables, frames)
        logits = [judge(each.reshape(-1, 16, 16, 3)) for each in (x, y)]
        nats = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
        return y, logits, nats.sum((1, 2, 3, 4)).mean(), task.network.apply(variables, x)

    y, (real, fake), nats, of_means = compute(x)
    assert y.shape == x.shape == (8, 3, 16, 16, 3) and len(real) == 24
    expected = {
        "loss/reconstruction": np.abs(x - y).mean(),
        "loss/divergence": nats / (3 * 16 * 16 * 3),
        "loss/adversarial": -fake.mean(),
        "logit/real": real.mean(),
        "loss/discriminator": np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
    }
    for name, value in expected.items():  # float32, logits being differences
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert metrics["weight/adversarial"] > 0 and not same(
        after.discriminator.params, state.discriminator.params
    )

    originals = np.where(flipped, video[:, :, :, ::-1], video)
    frames = jax.jit(
        functools.partial(task.generate, trajectory=True),
        static_argnames="weights",
        compiler_options=QUICK,
    )(state, KEY, np.zeros(8, int), np.arange(8), originals)
    np.testing.assert_allclose(np.moveaxis(frames, 0, 1), of_means, rtol=1e-4, atol=1e-5)  # float32
    assert task.animation == "reconstruction.gif" and task.space.shape == (3, 16, 16, 3)
    strips = task.space.picture(video[:2], 10)
    frame = np.asarray(strips)[
        1 : 4 * 16 : 4, 1 + 4 * 16 : 1 + 8 * 16 : 4
    ]  # four times as large, in a border of 1
    np.testing.assert_array_equal(frame, video[0, 1])


def test_held_out_examples_are_reconstructed_in_turn_whatever_is_beside_them(monkeypatch):
    _, task, _, state, _ = made("kl")
    state, _ = made("kl").after(state, 1)  # so that weights and their average differ
    originals = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    generate = jax.jit(
        task.generate, static_argnames=("weights", "trajectory"), compiler_options=QUICK
    )
    labels = np.arange(5)
    made_of = lambda indices, **options: generate(
        state, KEY, labels, np.array(indices), originals, **options
    )
    together = made_of([0, 1, 2, 3, 4], weights="ema")
    of_means = jax.jit(task.network.apply, compiler_options=QUICK)
    expected = of_means(state.averages["ema"], to_float(originals))
    np.testing.assert_allclose(
        together, expected[np.array([0, 1, 2, 0, 1])], rtol=1e-4, atol=1e-5
    )  # float32
    assert np.abs(together - made_of([0, 1, 2, 3, 4])).max() > 1e-4  # of other weights
    apart = made_of([4, 9, 6, 0, 0], weights="ema")
    np.testing.assert_array_equal(apart[0], together[4])
    frames = made_of([0, 1, 2, 3, 4], weights="ema", trajectory=True)
    assert frames.shape == (25, 5, 16, 16, 3) and task.animation == "latent_walk.gif"
    np.testing.assert_allclose(frames[-1], together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frames[0], np.roll(together, 1, axis=0), rtol=1e-5, atol=1e-6)

    # as programs ask for them: bytes, of what the data set has held out
    held_out = SimpleNamespace(source=Examples("image", originals))
    monkeypatch.setattr(Data, "load", lambda data, split: held_out)
    sampling = SimpleNamespace(seed=0, weights="ema")
    other = dataclasses.replace(task, data=dataclasses.replace(task.data, name="here"))
    images = sample(other, state, labels, sampling)
    np.testing.assert_array_equal(images, np.asarray(task.space.to_data(together)))
    assert other.num_originals == 3


class Examples:
    """Rows of an array as a source of a data set has them."""

    def __init__(self, feature, array):
        self.feature, self.array = feature, array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return {self.feature: self.array[rows]}


class Brighter(nn.Module):
    """Latents are the pixels, to which a number is added."""

    factor: int = 1

    def setup(self):
        self.offset = self.param("offset", nn.initializers.zeros, ())

    def encode(self, x):
        return x

    def decode(self, z):
        return z + self.offset

    def __call__(self, x):
        return self.decode(self.encode(x))


@functools.cache
def _narrow():
    features = lambda variables, x: VGG16(NARROW.widths).apply(variables, x)[-1].mean((1, 2))
    return [jax.jit(function, compiler_options=QUICK) for function in (NARROW.apply, features)]


@pytest.fixture
def narrow_features(monkeypatch):
    """In place of published weights and their wide networks."""
    variables, (distance, features) = narrow_lpips(), _narrow()
    monkeypatch.setattr(evaluators, "load_lpips", lambda: (NARROW, variables))
    monkeypatch.setattr(evaluators, "_lpips", distance)
    monkeypatch.setattr(evaluators, "_vgg16", lambda: features)


def hold_out(monkeypatch, config, held_out, train):
    """As the splits of the data."""
    feature = config.data.feature
    splits = {"test": Examples(feature, held_out), "train": Examples(feature, train)}
    monkeypatch.setattr(Data, "load", lambda data, split: SimpleNamespace(source=splits[split]))
    evaluators.originals_of.cache_clear()


@pytest.mark.parametrize("feature", ["image", "video"])
def test_reconstructions_that_are_the_originals_and_others_ten_levels_brighter(
    monkeypatch, narrow_features, feature
):
    """53 images are no multiple of the batch. Measures of video are those of all frames."""
    config = small_config("video" if feature == "video" else "kl")
    frames = (3,) * (feature == "video")
    random = np.random.default_rng(0)
    held_out, train = random.integers(0, 246, (2, 53, *frames, 16, 16, 3), np.uint8)
    hold_out(monkeypatch, config, held_out, train)
    config.evaluation.num_samples = 1000
    task = dataclasses.replace(build(config), network=Brighter(), adversary=None)
    state = task.init(KEY)
    config.sampling.weights = "params"
    experiment = Experiment.from_config(config, task)
    report = experiment.evaluate(experiment.model(state))
    assert report["num_samples"] == 53
    assert report["psnr"] == np.inf and report["lpips"] == 0
    # 1 but for float64, and 0 but for the roots of float32 features' covariance
    np.testing.assert_allclose([report["ssim"], report["detail_kept"]], 1, rtol=1e-6)
    assert abs(report["fd_vgg16"]) < 1e-3 * report["fd_vgg16_train"]
    x = held_out / 127.5 - 1
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(report["latent_mean"], x.mean(axes), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        report["latent_deviation"], x.std(axes), atol=2e-4
    )  # or one less in the ratio

    brighter = state.replace(
        autoencoder=state.autoencoder.replace(params={"offset": jnp.float32(10 / 127.5)})
    )
    report = experiment.evaluate(experiment.model(brighter))
    np.testing.assert_allclose(report["psnr"], 20 * np.log10(255 / 10), rtol=1e-6)
    assert report["lpips"] > 0 and report["fd_vgg16"] > 1e-3 * report["fd_vgg16_train"]
    assert report["ssim"] < 1
    np.testing.assert_allclose(report["detail_kept"], 1, rtol=1e-3)  # a constant has no detail


def test_originals_are_shown_above_their_reconstructions():
    """Of 25 images, two rows of ten."""
    value = np.arange(25, dtype=np.uint8)[:, None, None, None] * np.ones((16, 16, 1), np.uint8)
    picture = paired_grid({"original": value, "reconstruction": 100 + value})
    assert picture.info["rows"] == ["original", "reconstruction"] * 2
    left = picture.width - 10 * 66  # of the labels
    # In the middle of each, four times as large, in a border of 1.
    found = np.asarray(picture)[33::66, left + 33 :: 66]
    columns = np.arange(10)
    np.testing.assert_array_equal(found, [columns, 100 + columns, 10 + columns, 110 + columns])
    few = paired_grid({"original": value[:3], "reconstruction": value[:3]})
    assert few.height == 2 * 66 and few.width > 3 * 66


def test_a_last_batch_that_is_filled_up_counts_nothing():
    sizes = []

    def double(x, y):
        sizes.append(len(x))
        return {"twice": 2 * x, "sum": x + y}

    for count in (1, 50, 51, 149):
        x, y = np.arange(count), 10 * np.arange(count)[:, None]
        found = in_batches(lambda x, y: double(x[:, None], y), x, y)
        np.testing.assert_array_equal(found["twice"][:, 0], 2 * x)
        np.testing.assert_array_equal(found["sum"][:, 0], 11 * x)
    assert set(sizes) == {50}


def test_a_collapsed_codebook_is_reported(monkeypatch, narrow_features, tmp_path):
    """An encoder that says the same of everything."""
    _, task, _, state, _ = made("vq")
    config = small_config("vq")
    held_out, train = np.random.default_rng(0).integers(0, 256, (2, 20, 16, 16, 3), np.uint8)
    hold_out(monkeypatch, config, held_out, train)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3.0, "loss": 0.5, "steps_per_second": 1.0}\n')
    config.sampling.weights = "params"

    def alarms(state):
        report, pictures = split_pictures(experiment.evaluate(experiment.model(state)))
        assert pictures.keys() == {"reconstructions"}
        return report, alarms_of(task, report, tmp_path, 3)

    experiment = Experiment.from_config(config, task)
    assert alarms(state)[1] == []
    params = dict(state.autoencoder.params)
    params["quant_conv"] = dict(params["quant_conv"], kernel=0 * params["quant_conv"]["kernel"])
    report, sentences = alarms(state.replace(autoencoder=state.autoencoder.replace(params=params)))
    np.testing.assert_allclose(
        [report["codebook/usage"], report["codebook/perplexity"]], [1 / CODES, 1], rtol=1e-6
    )
    assert report["codebook/num_indices"] == 20 * 8 * 8
    (sentence,) = sentences
    assert sentence.startswith("Codebook collapse: 1 of 8 codes are used in 1280 places")


@pytest.mark.parametrize(
    ("choice", "changes", "words"),
    [
        (
            "kl",
            dict(model__name="AutoencoderKLM"),
            "config.model.name is 'AutoencoderKLM'.*AutoencoderKL",
        ),
        (
            "vq",
            dict(model__quantizer=dict(name="VQ")),
            "model.quantizer.name is 'VQ'.*VectorQuantizer",
        ),
        ("kl", dict(reconstruction__name="l3"), "config.reconstruction.name is 'l3'.*l1, l2"),
        ("kl", dict(adversary__objective="hinged"), "adversary.objective is 'hinged'.*hinge"),
        (
            "kl",
            dict(adversary__network=dict(depth=3)),
            "adversary.network.depth is set.*does not take",
        ),
        ("kl", dict(sampling__weights="emma"), "is 'emma'; there are params, ema"),
        ("kl", dict(accumulation_steps=2), "accumulation_steps must be 1"),
        (
            "kl",
            dict(weights=dict(perceptual=1.0, commitment=0.25)),
            "has commitment, perceptual; AutoencoderKL needs divergence, perceptual, of which 0 "
            "leaves",
        ),
        (
            "kl",
            dict(weights=dict(perceptual=1.0)),
            "config.weights has perceptual; AutoencoderKL needs divergence",
        ),
        (
            "kl",
            dict(weights=dict(divergence=0.0, kl=1.0)),
            "has divergence, kl; .* needs divergence, perceptual",
        ),
        ("vq", dict(weights=dict(perceptual=0.0)), "VQModel needs commitment, perceptual"),
        (
            "kl",
            dict(data__image_shape=(16, 17, 3)),
            r"\(16, 17, 3\).*reconstructs as \(16, 16, 3\).*multiples of 2",
        ),
    ],
)
def test_mistakes_are_named(choice, changes, words):
    config = small_config(choice)
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (config[part] if part else config)[field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


def test_a_codebook_that_is_a_parameter_has_a_weight_too():
    config = small_config("vq")
    del config.model.quantizer["ema_decay"], config.model.quantizer["restart_threshold"]
    with pytest.raises(ValueError, match="needs codebook, commitment, perceptual"):
        build(config)
    config.weights.codebook = 1.0
    task = build(config)
    assert task.network.quantizer == VectorQuantizer(CODES, 2, normalize=True)
    assert dict(task.weights) == {"commitment": 0.25, "codebook": 1.0}


def assert_eight_devices_do_as_one(*choices):
    """Train each choice on eight devices, over the mesh after its name, and on one."""
    lines = lines_of("tests.experiments.autoencoder_run", 8, *choices)
    for argument, rows in zip(choices, lines, strict=True):
        choice = argument.partition("=")[0]
        this = made(choice)
        state, key = this.state, jax.random.key(0)
        assert len(rows) == 4
        for step, eight in enumerate(rows):
            images = batch(this.config, step)
            state, one = this.update(state, images, jax.random.fold_in(key, step), *this.frozen)
            assert one.keys() == eight.keys()
            for name in one:  # sums in another order, of signs that rounding turns; 1.3e-5 was seen
                np.testing.assert_allclose(
                    eight[name], one[name], rtol=5e-5, atol=1e-6, err_msg=f"{choice} {name}"
                )


@pytest.mark.slow
def test_on_eight_devices_it_is_as_on_one():
    """Batch norm, codes and importance weights see the whole batch on any number of devices."""
    meshed = 'kl={"fsdp": 2, "tensor": 2, "context": 2}'
    assert_eight_devices_do_as_one("vq", "video", "iwae", meshed)
