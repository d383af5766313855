"""Test ADA in the task of GANs: where it acts, what moves its probability, and its state."""

import json
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_gan, emoji_gan, gaussians_gan
from experiments.configuration.runs import build
from genjax.training import Checkpoints

QUICK = {"xla_backend_optimization_level": 0}
BATCH_SIZE = 16
KEY = jax.random.key(1)
SEEN = ("logit/real", "logit/fake", "regularizer/r1", "regularizer/r2", "norm/gradient_of_images")


class Probability(NamedTuple):
    probability: jax.Array


class Dim:
    """A stand-in for ADA that multiplies all images by 1 − p, and keeps p."""

    def init(self):
        return Probability(jnp.zeros(()))

    def __call__(self, key, image, probability):
        return (1 - probability) * image

    def update(self, state, step, r_t, images):
        return state


class Low(nn.Module):
    """A generator of the point (−1, −1)."""

    latent_size: int = 2
    num_classes: int = 0

    @nn.compact
    def __call__(self, z, labels=None, *, train=False):
        return self.param("point", nn.initializers.constant(-1.0), (2,)) + 0 * z


class Offset(nn.Module):
    """The sum of the coordinates, and an offset for each class."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, points, labels=None, *, train=False):
        return self.param("scale", nn.initializers.ones, ()) * points.sum(1) + 9.0 * labels


def test_r_t_is_of_pairs_where_only_differences_count():
    """All pairs are right, although the logits of class 0 are below all those of class 1."""
    config = gaussians_gan.get_config("r3gan")
    config.model = dict(
        generator=dict(name=f"{__name__}.Low"), discriminator=dict(name=f"{__name__}.Offset")
    )
    config.unlock()
    config.condition = dict(name="Classes", num_classes=2)
    config.batch_size, config.updates.generator = BATCH_SIZE, 1
    task = build(config)
    labels = np.arange(BATCH_SIZE, dtype=np.int32) % 2
    batch = {"image": np.ones((BATCH_SIZE, 2), np.float32), "label": labels}
    state = jax.jit(task.init)(jax.random.key(0))
    _, metrics = jax.jit(task.update, compiler_options=QUICK)(state, batch, KEY)
    for name in ("overfitting/r_t", "accuracy/real", "accuracy/fake"):
        assert float(jnp.divide(*metrics[name])) == 1


@pytest.mark.parametrize("objective", ["non_saturating", "relativistic"])
def test_it_acts_on_all_that_the_discriminator_sees(objective):
    """With p = 1 it sees nothing, and with p = ½ the penalty is of D(x/2) by x."""
    config = gaussians_gan.get_config("r3gan")
    config.unlock()
    config.batch_size, config.updates.generator, config.objective = BATCH_SIZE, 1, objective
    for player in (config.model.generator, config.model.discriminator):
        player.update(width=8, depth=1)
    config.regularizers = {penalty: dict(weight=1.0) for penalty in ("r1", "r2")}
    config.adaptive_augmentation = dict(name=f"{__name__}.Dim")
    task = build(config)
    points = np.random.default_rng(0).standard_normal((BATCH_SIZE, 2), np.float32)
    batch = {"image": points, "label": np.zeros(BATCH_SIZE, np.int32)}
    state = jax.jit(task.init)(jax.random.key(0))
    update = jax.jit(task.update, compiler_options=QUICK)

    def metrics(p):
        started = state.replace(adaptation=Probability(jnp.float32(p)))
        found = update(started, batch, jax.random.key(1))[1]
        assert float(found["augmentation/probability"]) == p
        return {name: float(jnp.divide(*found[name])) for name in SEEN}

    blind, half, whole = map(metrics, (1.0, 0.5, 0.0))
    assert blind["logit/real"] == blind["logit/fake"]
    gradients = [name for name in SEEN if not name.startswith("logit")]
    assert all(blind[name] == 0 < half[name] for name in gradients)
    variables = state.discriminator.variables
    critic = lambda scale: lambda x: task.discriminator.apply(variables, scale * x).sum()
    for scale, found in ((0.5, half), (1.0, whole)):
        slopes = jax.jit(jax.grad(critic(scale)))(points)
        np.testing.assert_allclose(found["regularizer/r1"], (slopes**2).sum(1).mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def game():
    """A generator that stays as it is; its discriminator sees 8×8 pixels through ADA."""
    config = digits_gan.get_config("dcgan")
    config.unlock()
    config.batch_size, config.objective, config.regularizers = BATCH_SIZE, "non_saturating", {}
    config.condition = dict(name="Unconditional")
    config.model.generator.width, config.model.discriminator.width = 8, 32
    config.optimizer.generator.learning_rate = 0.0
    config.optimizer.discriminator.update(learning_rate=2e-3, schedule="constant", b1=0.5)
    config.adaptive_augmentation = dict(
        name="ADA", changes=("color",), images_to_one=1000.0, every=4
    )
    task, traces = build(config), []

    def traced(*args):
        traces.append(args)
        return task.update(*args)

    return task, jax.jit(traced, compiler_options=QUICK), traces


@pytest.fixture(scope="module")
def images(game):
    """Images of the generator itself: only by memory can a discriminator tell which are real."""
    task, *_ = game
    state = jax.jit(task.init)(jax.random.key(0))

    @jax.jit
    def generate(key):
        return task._generate(state.generator, key, None, BATCH_SIZE)[0]

    return lambda step: {"image": generate(jax.random.key(100 + step))}


def played(game, images, steps, state=None):
    """Return the state and the metrics of each step. `images(step)` is the batch of a step."""
    task, update, _ = game
    state = jax.jit(task.init)(jax.random.key(0)) if state is None else state
    history = []
    for step in range(int(state.step), steps):
        state, metrics = update(state, images(step), jax.random.fold_in(KEY, step))
        history.append(metrics)
    return state, history


@pytest.mark.slow
def test_the_probability_rises_when_the_discriminator_memorizes(game, images):
    """Real images are sixteen, or always new; generated ones always have the same law."""
    few, new = (
        [float(metrics["augmentation/probability"]) for metrics in played(game, real, 60)[1]]
        for real in (lambda step: images(0), images)
    )
    assert few[:4] == [0.0] * 4 and few[-1] > 0.4
    assert max(new) == 0
    # p rises at most by one in 1,000 images, and all of this is one program.
    assert max(few) <= 60 * BATCH_SIZE / 1000
    assert len(game[2]) == 1


@pytest.mark.slow
def test_resumed_between_two_adjustments_it_is_bitwise_the_same(game, images, tmp_path):
    task, *_ = game
    few = lambda step: images(0)
    middle, _ = played(game, few, 22)
    assert float(middle.adaptation.images) == 2 * BATCH_SIZE
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(22, middle)
        checkpoints.wait()
        restored = checkpoints.restore(22, jax.eval_shape(task.init, jax.random.key(0)))
    expected, history = played(game, few, 26, middle)
    resumed, again = played(game, few, 26, restored)
    assert float(resumed.adaptation.probability) != float(middle.adaptation.probability)
    for a, b in ((expected, resumed), (history, again)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_mistakes_are_named():
    config = emoji_gan.get_config("ada")
    config.adaptive_augmentation.changes = ("colour",)
    with pytest.raises(ValueError, match="no changes 'colour'; there are blitting.*color"):
        build(config)
    for wrong, words in (
        (dict(every=0), "every 0 steps"),
        (dict(target=6.0), "target is 6.0; a mean sign is between -1 and 1"),
        (dict(images_to_one=0.0), "images_to_one is 0.0; it must be positive"),
    ):
        config.adaptive_augmentation = dict(name="ADA", **wrong)
        with pytest.raises(ValueError, match=words):
            build(config)


def test_emoji_are_seen_as_they_are_or_by_one_of_two_augmentations():
    for choice, kinds in (("none", (0, 0)), ("diffaugment", (3, 0)), ("ada", (0, 1))):
        task = build(emoji_gan.get_config(choice))
        assert (len(task.augmentations), int(task.adaptive is not None)) == kinds


def test_ada_on_emoji_has_the_settings_of_its_run_on_record():
    """But for the target, which was 0.3 for an earlier r_t."""
    record = Path(__file__).parents[3] / "docs/results/records/emoji_gan_ada_weak/config.json"
    run = json.loads(record.read_text())["config"]
    config = json.loads(emoji_gan.get_config("ada").to_json_best_effort())
    assert run["adaptive_augmentation"].pop("target") == 0.3
    for field in ("adaptive_augmentation", "regularizers", "num_steps", "batch_size"):
        assert config[field] == run[field]
