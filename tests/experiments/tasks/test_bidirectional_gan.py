"""Test the tasks of learned inverses: joint training, and an encoder for a finished GAN."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_flow, gaussians_gan
from experiments.configuration import base
from experiments.configuration.runs import build, open_run
from experiments.launch.experiment import Experiment
from experiments.tasks import inversion
from experiments.tasks.bidirectional import BidirectionalGAN
from experiments.tasks.latent_generators import LatentGenerator
from genjax.models.gans import stylegan2, stylegan3
from genjax.training import Checkpoints
from genjax.training.workdir import record_config
from tests.experiments import bidirectional_run
from tests.experiments.bidirectional_run import small_config, untrained_run
from tests.experiments.launching import run as run_command
from tests.virtual_devices import lines_of

ROOT = Path(__file__).parents[3]
QUICK = {"xla_backend_optimization_level": 0}
FEW = dict(count=20, num_steps=5, refinement_steps=2)
MATRIX = np.array([[1.2, 0.5], [-0.4, 0.8]], np.float32)


class Linear(nn.Module):
    """x = A z of a trained A, for points; as an encoder, z = C x."""

    features: int = 2
    latent_size: int = 2

    @nn.compact
    def __call__(self, z, labels=None, *, train=False):
        return nn.Dense(self.features, use_bias=False, name="map")(z)


class Quadratic(nn.Module):
    """The score of a pair is quadratic in it."""

    @nn.compact
    def __call__(self, images, z, labels=None, *, train=False):
        v = jnp.concatenate([images, z], axis=1)
        weights = self.param("weights", nn.initializers.normal(0.1), (v.shape[1],) * 2)
        return jnp.einsum("bi,ij,bj->b", v, weights, v)[:, None]


class ThreeScores(nn.Module):
    """Three scores of a pair, each quadratic in the pair."""

    @nn.compact
    def __call__(self, images, z, labels=None, *, train=False):
        v = jnp.concatenate([images, z], axis=1)
        weights = self.param("weights", nn.initializers.normal(0.3), (3, *[v.shape[1]] * 2))
        return jnp.einsum("bi,tij,bj->bt", v, weights, v)


class Styled(nn.Module):
    """A linear generator of points with two styles; w is linear in z."""

    latent_size: int = 3
    w_size: int = 2
    num_styles: int = 2

    def setup(self):
        self.to_w, self.to_x = nn.Dense(self.w_size), nn.Dense(2)

    def map(self, z, labels=None, *, truncation=1.0, train=False):
        return truncation * jnp.repeat(self.to_w(z)[:, None], self.num_styles, 1)

    def synthesize(self, w, *, train=False):
        return self.to_x(w.reshape(len(w), -1))

    def __call__(self, z, labels=None, *, train=False):
        return self.synthesize(self.map(z), train=train)


class Dense(nn.Module):
    """An encoder that is linear in the image, with a bias."""

    features: int

    @nn.compact
    def __call__(self, images, condition=None, *, train=False):
        return nn.Dense(self.features, name="map")(images)


def points(**changes):
    """A linear generator and encoder of points, and a quadratic discriminator."""
    config = small_config("bigan")
    linear, quadratic = f"{__name__}.Linear", f"{__name__}.Quadratic"
    config.model = dict(
        generator=dict(name=linear), encoder=dict(name=linear), discriminator=dict(name=quadratic)
    )
    config.data.image_shape, config.space.name = (2,), "Points"
    config.condition = dict(name="Unconditional", num_rows=1)
    config.update(changes)
    return config


def some_points(step, count=16):
    x = np.random.default_rng(step).standard_normal((count, 2), np.float32) @ MATRIX.T
    return {"image": x, "label": np.zeros(count, np.int32)}


@pytest.fixture(scope="module")
def bigan_run(tmp_path_factory):
    """A small bidirectional GAN's run. Do not change it."""
    return untrained_run(tmp_path_factory.mktemp("bigan") / "run", small_config("bigan"))


@pytest.fixture(scope="module")
def styled_run(tmp_path_factory):
    """A run of a generator of points with styles. Do not change it."""
    config = gaussians_gan.get_config()
    config.model.generator = dict(name=f"{__name__}.Styled")
    config.model.discriminator.update(width=4, depth=1)
    return untrained_run(tmp_path_factory.mktemp("styled") / "run", config)


def encoder_of_points(run, **weights):
    data = gaussians_gan.get_config().data
    config = base.inversion("points", name=data.name, image_shape=data.image_shape)
    config.space.name, config.model = "Points", dict(name=f"{__name__}.Dense")
    config.condition = dict(name="Unconditional", num_rows=3)
    config.generator_run = str(run)
    config.weights.update(weights)
    return config


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def one_step(config):
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    update = jax.jit(task.update, compiler_options=QUICK)
    return task, state, *update(state, some_points(0), jax.random.key(1))


def test_a_step_moves_generator_encoder_and_discriminator():
    task, before, after, metrics = one_step(points())
    for name in ("generator", "encoder"):
        assert not same(before.generator.params[name], after.generator.params[name])
    assert not same(before.discriminator.params, after.discriminator.params)
    assert int(after.step) == 1
    expected = {"loss/generator", "loss/discriminator", "slope/generator", "regularizer/r2"}
    assert expected <= set(metrics)
    # The averages are of generator and encoder, and so are what samples and evaluators read.
    networks = task.networks(after, "ema")
    assert same(networks["generator"], task.variables(after, "ema"))
    joined = after.averages["ema"]["params"]
    assert same(networks["encoder"]["params"], joined["encoder"])
    assert same(networks["generator"]["params"], joined["generator"])
    started = task.start_from(before, task.networks(after, "params"))
    assert same(started.generator.params, after.generator.params)
    assert same(started.averages["ema"], after.generator.variables)


def test_updates_divide_the_batch_and_repeat_the_generators():
    updates = dict(discriminator=2, generator=3, simultaneous=False)
    _, _, after, metrics = one_step(points(updates=updates))
    assert int(after.discriminator.optimizer_state[0].count) == 2
    assert int(after.generator.optimizer_state[0].count) == 3
    assert metrics["loss/generator"].count == 3 and metrics["loss/discriminator"].count == 2


def doubled(key, points):
    return 2 * points


def test_the_discriminator_sees_the_encoders_pairs_and_the_generators():
    """Its first loss, from the networks by themselves and the keys of an update.

    Adam's first moment is the gradient, because its decay is 0. Penalties are of the pairs before
    their augmentation, which doubles points.
    """
    config = points(objective="non_saturating", augmentations=(f"{__name__}.doubled",))
    config.regularizers = dict(r1=dict(weight=2.0), r2=dict(weight=3.0))
    _, state, after, metrics = one_step(config)
    key = jax.random.split(jax.random.split(jax.random.key(1))[0], 1)[0]
    latent_key, *_ = jax.random.split(jax.random.split(key, 3)[0], 3)
    x, z = some_points(0)["image"], jax.random.normal(latent_key, (16, 2))
    a, c = (state.generator.params[name]["map"]["kernel"] for name in ("generator", "encoder"))
    twice = np.array([2.0, 2.0, 1.0, 1.0])
    pairs = [twice * jnp.concatenate(pair, 1) for pair in ((x, x @ c), (z @ a, z))]

    def written_out(weights):
        real, fake = (jnp.sum(v @ weights * v, 1) for v in pairs)
        slopes = (twice * (v @ (weights + weights.T)) for v in pairs)
        r1, r2 = (jnp.square(each).sum(1).mean() for each in slopes)
        loss = (nn.softplus(-real) + nn.softplus(fake)).mean()
        return loss + 2 * r1 + 3 * r2, {
            "loss/discriminator": loss,
            "logit/real": real.mean(),
            "regularizer/r1": 2 * r1,
            "regularizer/r2": 3 * r2,
        }

    weights = state.discriminator.params["weights"]
    gradient, expected = jax.grad(written_out, has_aux=True)(weights)
    for name, value in expected.items():  # float32
        np.testing.assert_allclose(metrics[name].total, value, rtol=1e-4, err_msg=name)
    found = after.discriminator.optimizer_state[0].mu["weights"]
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)


def test_of_several_scores_each_has_the_objectives_boundary_and_slope():
    """That of least squares is 1/2, and its slope |score − 1| of a generated pair."""
    updates = dict(discriminator=1, generator=1, simultaneous=True)
    config = points(objective="least_squares", updates=updates)
    config.model.discriminator.name, config.regularizers = f"{__name__}.ThreeScores", {}
    _, state, _, metrics = one_step(config)
    maps = (state.generator.params[name]["map"]["kernel"] for name in ("generator", "encoder"))
    (a, c), weights = maps, state.discriminator.params["weights"]
    x, scores = some_points(0)["image"], {}
    keys = jax.random.split(jax.random.key(1))
    for player, key in zip(("discriminator", "generator"), keys, strict=True):
        pair_key = jax.random.split(jax.random.split(key, 1)[0], 3)[0]
        z = jax.random.normal(jax.random.split(pair_key, 3)[0], (16, 2))
        pairs = (jnp.concatenate(pair, 1) for pair in ((x, x @ c), (z @ a, z)))
        scores[player] = [jnp.einsum("bi,tij,bj->bt", v, weights, v) for v in pairs]
    real, fake = scores["discriminator"]
    np.testing.assert_allclose(metrics["accuracy/real"].total, (real > 0.5).mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["accuracy/fake"].total, (fake < 0.5).mean(), atol=1e-6)
    slope = jnp.abs(scores["generator"][1] - 1).mean()
    np.testing.assert_allclose(metrics["slope/generator"].total, slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(regularizers=dict(lecam=dict(weight=1.0))), "has 'lecam'; a bidirectional GAN takes"),
        (dict(model=dict(encoder=dict(name="Coder"))), "'Coder'.* there are Encoder"),
        (dict(model=dict(discriminator=dict(name="dcgan.Discriminator"))), "JointDiscriminator"),
        (dict(data=dict(image_shape=(16, 16, 1))), "generator makes .8, 8, 1.*16, 16, 1"),
    ],
)
def test_mistakes_are_named(changes, words):
    config = small_config("bigan")
    if "regularizers" in changes:
        config.regularizers = changes["regularizers"]
    elif "encoder" in changes.get("model", {}) or "discriminator" in changes.get("model", {}):
        (part,) = changes["model"]
        config.model[part] = changes["model"][part]
    else:
        config.update(changes)
    with pytest.raises(ValueError, match=words):
        build(config)


def resumed_and_whole(task, batches, folder, *frozen):
    """Return states and metrics after 4 steps: at once, and with an interruption after 2."""
    update, key = jax.jit(task.update, compiler_options=QUICK), jax.random.key(1)
    state, history = jax.jit(task.init)(jax.random.key(0)), []
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in range(4):
            if step == 2:
                checkpoints.save(2, state)
            state, metrics = update(state, batches(step), key, *frozen)
            history.append(metrics)
        checkpoints.wait()
        resumed = checkpoints.restore(2, jax.eval_shape(task.init, jax.random.key(0)))
    for step in (2, 3):
        resumed, metrics = update(resumed, batches(step), key, *frozen)
    return (state, history[-1]), (resumed, metrics)


def test_resumed_in_the_middle_it_is_bitwise_the_same(tmp_path, styled_run):
    whole, resumed = resumed_and_whole(build(points()), some_points, tmp_path / "jointly")
    assert same(whole, resumed)
    task = build(encoder_of_points(styled_run))
    whole, resumed = resumed_and_whole(task, some_points, tmp_path / "encoder", *task.frozen())
    assert same(whole, resumed)


class Perceptual:
    """A stand-in for LPIPS: differences times its only parameter."""

    def apply(self, variables, x, y):
        return variables * jnp.abs(x - y).mean(1)


def test_an_encoder_after_the_fact_learns_w_and_reconstructions(styled_run, monkeypatch):
    """Its loss, from the matrices of the networks; the generator is the run's average."""
    stand_ins = dict(LPIPS=Perceptual, require_lpips=lambda: None, load_lpips=lambda: (None, 7.0))
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(inversion, name, stand_in)
    task = build(encoder_of_points(styled_run, latents=2.0, images=3.0, perceptual=0.5))
    (frozen,) = task.frozen()
    assert same(frozen["generator"], jax.device_get(open_run(styled_run).variables))
    state = jax.jit(task.init)(jax.random.key(0))
    _, metrics = jax.jit(task.update)(state, some_points(0), jax.random.key(1), frozen)
    of_layer = lambda params: lambda x: x @ params["kernel"] + params["bias"]
    to_w, to_x = (of_layer(frozen["generator"]["params"][name]) for name in ("to_w", "to_x"))
    encode, synthesize = of_layer(state.params["map"]), lambda w: to_x(jnp.concatenate([w, w], 1))
    x, w = some_points(0)["image"], to_w(jax.random.normal(jax.random.key(1), (16, 3)))
    of_latents = jnp.square(encode(synthesize(w)) - w).mean()
    of_images = jnp.square(synthesize(encode(x)) - x).mean()
    np.testing.assert_allclose(metrics["loss/latents"], of_latents, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/images"], of_images, rtol=1e-4)
    perceptual = 7 * jnp.abs(synthesize(encode(x)) - x).mean()
    np.testing.assert_allclose(metrics["loss/perceptual"], perceptual, rtol=1e-4)
    total = 2 * of_latents + 3 * of_images + 0.5 * perceptual
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    # A sheet shows reconstructions of held-out examples, in the order of its rows.
    originals, *inputs = task.sampling_inputs(None)
    assert originals.shape == (3, task.columns, 2)
    rows, indices = jnp.array([2, 2, 0]), jnp.array([2, 2, 0]) * task.columns + jnp.array([1, 0, 3])
    made = jax.jit(task.generate)(state, jax.random.key(0), rows, indices, originals, *inputs)
    shown = originals.reshape(-1, 2)[indices]
    np.testing.assert_allclose(made, synthesize(encode(shown)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "network", [stylegan2.Generator, functools.partial(stylegan3.Generator, num_layers=4)]
)
def test_generators_with_styles_take_one_w_for_all(network):
    """StyleGAN2 and StyleGAN3, in shapes; `map` repeats w, and so does the latent generator."""
    generator = network(resolution=16, latent_size=6, w_size=5, mapping_layers=1)
    latent_generator = LatentGenerator(generator)
    assert latent_generator.has_styles and latent_generator.latent_size == 5
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}

    def both(z):
        variables = generator.init(keys, z)
        latents = latent_generator.draw(variables, jax.random.key(2), None, 3)
        return latents, latent_generator.images(variables, latents, None)

    latents, images = jax.eval_shape(both, jax.ShapeDtypeStruct((3, 6), jnp.float32))
    assert latents.shape == (3, 5) and images.shape == (3, 16, 16, 3)


def test_an_encoder_to_z_gives_the_w_of_a_generator_with_styles():
    x, key, encoder = jnp.asarray(some_points(0)["image"]), jax.random.key(0), Dense(3)
    generator, inputs = LatentGenerator(Styled()), {"encoder": x, "generator": jnp.zeros((1, 3))}
    networks = {"encoder": encoder, "generator": generator.network}
    variables = {name: network.init(key, inputs[name]) for name, network in networks.items()}
    task = SimpleNamespace(encoder=encoder)
    w = BidirectionalGAN.encode_jointly(task, generator, variables, x, None)
    layers = variables["encoder"]["params"]["map"], variables["generator"]["params"]["to_w"]
    expected = x
    for layer in layers:
        expected = expected @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_cannot_be_inverted_is_named(tmp_path, styled_run, bigan_run):
    with pytest.raises(FileNotFoundError, match="config.generator_run names .* train a GAN"):
        build(small_config("encoder", str(tmp_path)))
    (tmp_path / "flow").mkdir()
    record_config(tmp_path / "flow", digits_flow.get_config().to_dict(), ())
    with pytest.raises(ValueError, match="is a run of a Diffusion, not of a GAN"):
        build(small_config("encoder", str(tmp_path / "flow")))
    with pytest.raises(ValueError, match=r"has the shape \(2,\), this config \(8, 8, 1\)"):
        build(small_config("encoder", str(styled_run)))
    with pytest.raises(ValueError, match="config.weights has 'lpips'; there are latents"):
        build(encoder_of_points(styled_run, lpips=1.0))
    with pytest.raises(ValueError, match="config.weights are all 0; set one of latents, images"):
        build(encoder_of_points(styled_run, latents=0.0, images=0.0))
    noisy = small_config("encoder", str(bigan_run))
    noisy.model.stochastic = True
    with pytest.raises(ValueError, match="no term of GAN inversion trains a deviation"):
        build(noisy)


@pytest.mark.slow
def test_an_encoder_from_end_to_end(tmp_path, bigan_run):
    """Train, sample, evaluate: the report has a row for each way back, and its page shows it."""
    run = tmp_path / "run"
    fields = dict(
        num_steps=4, batch_size=16, generator_run=bigan_run, log_every=2,
        **{"checkpoint.every": 2, "sampling.every": 0, "sampling.per_class": 2},
        **{"model.width": 4, "model.hidden": 8},
        **{f"evaluation.measures.inversions.{name}": value for name, value in FEW.items()},
    )  # fmt: skip
    result = run_command(
        "train", f"--config={ROOT}/configs/digits_gan_inverse.py:encoder", f"--workdir={run}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((run / "report.json").read_text())
    ways = report["inversion"]
    assert list(ways) == [
        "gradient descent",
        "encoder",
        "joint training",
        "encoder, then descent",
    ]
    assert report["reconstruction_error"] == ways["encoder"]["reconstruction_error"]
    page = (run / "report.html").read_text()
    assert "Back to the latents" in page and "encoder, then descent" in page
    assert (run / "inversions" / "step_000004.png").exists() and (run / "samples.png").exists()
    # The bidirectional run itself has the same row of joint training.
    theirs = open_run(bigan_run)
    theirs.config.evaluation.measures = {"inversions": dict(name="Inversions", **FEW)}
    experiment = Experiment.of_run(theirs)
    found = experiment.evaluate(experiment.model(theirs.state))["inversion"]
    assert list(found) == ["gradient descent", "joint training", "joint training, then descent"]
    for name in ("reconstruction_error", "latent_error"):
        for way in ("gradient descent", "joint training"):
            np.testing.assert_allclose(found[way][name], ways[way][name], rtol=1e-4)


@pytest.mark.slow
def test_on_eight_devices_it_is_as_on_one(bigan_run):
    folder, meshed = str(bigan_run), 'bigbigan={"data": 2, "fsdp": 4}'
    eight = lines_of("tests.experiments.bidirectional_run", 8, folder, meshed, "encoder")
    for choice, other in zip(("bigbigan", "encoder"), eight, strict=True):
        one = bidirectional_run.run(choice, {"data": -1}, folder)
        assert len(one) == 3
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys()
            for name in a:  # sums in another order
                np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_task_finds_the_inverse_of_a_linear_generator():
    """On fresh points x = A z in each step. Rates fall, and so does the noise of the batches."""
    config = points(objective="non_saturating", num_steps=4000, batch_size=256)
    for player in config.optimizer.values():
        player.update(learning_rate=3e-3, b1=0.0, eps=1e-8)
    task = build(config)

    def step(state, number):
        key = jax.random.fold_in(jax.random.key(5), number)
        x = jax.random.normal(key, (256, 2)) @ MATRIX.T
        return task.update(state, {"image": x, "label": jnp.zeros(256, int)}, key)[0], None

    train = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(config.num_steps))[0])
    networks = task.networks(train(task.init(jax.random.key(0))), "ema")
    a, c = (networks[name]["params"]["map"]["kernel"].T for name in ("generator", "encoder"))
    np.testing.assert_allclose(c @ a, np.eye(2), atol=0.05)
    np.testing.assert_allclose(a @ a.T, MATRIX @ MATRIX.T, atol=0.15)
