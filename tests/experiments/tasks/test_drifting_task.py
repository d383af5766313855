"""A generator that drifts: its banks, its loss class by class, and its guidance scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation
from experiments import train
from experiments.configuration.runs import build, open_run
from experiments.tasks.drifting import Drift
from experiments.tasks.features import PixelFeatures, VGG16Features
from genjax.distillation.drifting import drifting_loss
from genjax.training import Checkpoints

NETWORK = dict(patch_size=4, width=16, depth=1, num_heads=2, unroll=1)


def small(**changes):
    config = digits_distillation.get_config("Drift")
    config.model.update(NETWORK)
    config.num_steps, config.batch_size = 2, 16
    config.checkpoint.every, config.evaluation.measures = 2, {}
    config.sampling.per_class = 1
    config.optimizer.update(schedule="constant", warmup=0.0)
    config.method.update(classes=3, generated=4, drawn=5, drawn_negatives=2, sizes=(4, 8))
    config.update(changes)
    return config


@functools.cache
def batch():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(16) % 10}


@pytest.fixture(scope="module")
def training():
    """Return the task, its first state, and its compiled step."""
    task = build(small())
    return task, jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)


def test_a_step_fills_the_banks_and_moves_the_generator(training):
    task, state, update = training
    after, metrics = update(state, batch(), jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    x = task.space.encode(batch()["image"])
    np.testing.assert_array_equal(after.positives.pushed, [2] * 6 + [1] * 4)
    np.testing.assert_array_equal(after.positives.examples[3, :2], x[jnp.array([3, 13])])
    np.testing.assert_array_equal(after.negatives.pushed, [16])
    np.testing.assert_array_equal(after.negatives.examples[0], x[8:])  # the last eight
    paths = ("averages/ema/x", "positives/examples", "negatives/pushed")
    assert [task.is_sampled_from(path, "ema") for path in paths] == [True, False, False]
    assert task.abstract_frozen() == task.frozen() == ()  # pixels need no network


def test_the_loss_of_a_class_is_the_sum_of_its_drifts():
    """By a loop over classes, features and places. All of a feature share its normalization."""
    method, by_hand = Drift(), jax.jit(drifting_loss)
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), (*shape, 4, 4, 1))
    samples, positives, negatives = draw(0, 6), draw(1, 2, 5), draw(2, 2, 3)
    weights = jnp.array([0.0, 0.7])
    features = functools.partial(PixelFeatures(patch_sizes=(2,)), None)
    of_all = jax.jit(functools.partial(method.losses, features))
    losses = of_all(samples, positives, negatives, weights)
    of_classes = [
        [features(images) for images in (own, positives[label], negatives[label])]
        for label, own in enumerate(jnp.split(samples, 2))
    ]
    total = np.zeros(2)
    for number in range(2):
        groups = [
            [each[number][:, place] for each in of_class]
            for of_class in of_classes
            for place in range(of_class[0][number].shape[1])
        ]
        places = len(groups) // 2
        stacked = (jnp.stack(each) for each in zip(*groups, strict=True))
        loss = by_hand(*stacked, negative_weight=jnp.repeat(weights, places))
        total += np.asarray(loss).reshape(2, places).mean(axis=1)
    np.testing.assert_allclose(losses, total, rtol=1e-5)


def test_scales_have_the_density_of_their_power():
    """The distribution function is (1 − s⁻⁴)/(1 − 4⁻⁴) for a density ∝ s⁻⁵ between 1 and 4."""
    u = jnp.linspace(0, 1, 11)
    s = Drift().scales(u)
    np.testing.assert_allclose((1 - s**-4.0) / (1 - 4**-4.0), u, atol=1e-5)


def test_features_are_means_over_squares():
    x = jnp.arange(2 * 6 * 4 * 3.0).reshape(2, 6, 4, 3)
    pooled = VGG16Features(places=2)._pooled(x)
    assert pooled.shape == (2, 4, 3)
    np.testing.assert_allclose(pooled[:, 1], x[:, :3, 2:].mean((1, 2)), rtol=1e-6)
    assert VGG16Features(places=9)._pooled(x).shape == (2, 24, 3)
    frozen = jax.tree.map(lambda a: jnp.zeros(a.shape), VGG16Features().abstract_frozen())
    maps = jax.eval_shape(VGG16Features(), frozen, jnp.zeros((2, 32, 32, 1)))
    assert [each.shape for each in maps] == [
        (2, 16, 64),
        (2, 16, 128),
        (2, 16, 256),
        (2, 16, 512),
        (2, 4, 512),
    ]


def test_what_does_not_fit_is_said_before_any_compute():
    with pytest.raises(ValueError, match="config.method.classes is 20, and config.batch_size 16"):
        config = small()
        config.method.classes = 20
        build(config)
    with pytest.raises(ValueError, match="batch_size 16 in config.accumulation_steps 8 parts has"):
        config = small()
        config.accumulation_steps = 8
        build(config)
    with pytest.raises(ValueError, match="is Unconditional, and a bank is kept for each class"):
        config = small()
        config.condition = dict(name="Unconditional", num_rows=10)
        build(config)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("VGG16Features", VGG16Features()),
        (dict(name="VGG16Features", places=2), VGG16Features(places=2)),
        (dict(name="PixelFeatures", patch_sizes=[4]), PixelFeatures(patch_sizes=(4,))),
    ],
)
def test_features_are_found_by_name(given, expected):
    config = small()
    config.method.features = given
    assert build(config).method.features == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features="builtins.len"), "features names builtins.len, which has no frozen and no"),
        (dict(features=3), "config.method.features names 3, which has no frozen"),
        (
            dict(features="VGG16Feature"),
            "config.method.features is 'VGG16Feature'; .*VGG16Features",
        ),
        (dict(power=1.0), "power is 1, which has another integral; take 0.99 or 1.01"),
    ],
)
def test_what_is_no_argument_of_drifting_is_refused(changes, message):
    config = small()
    config.method.update(changes)
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_run_goes_on_to_the_last_bit_with_its_banks(training, tmp_path):
    """From a checkpoint as from memory, and the examples of the first step count in the third."""
    task, state, update = training
    state = update(state, batch(), jax.random.key(1))[0]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    restored = checkpoints.restore(1, abstract)
    go_on = lambda state: update(state, batch(), jax.random.key(2))[0]
    jax.tree.map(np.testing.assert_array_equal, go_on(restored), go_on(state))
    empty = state.replace(positives=jax.tree.map(jnp.zeros_like, state.positives))
    other = go_on(empty).params["head"]["kernel"]
    assert jnp.abs(go_on(state).params["head"]["kernel"] - other).max() > 0


@pytest.mark.slow
def test_a_run_is_sampled(tmp_path):
    train.run(small(), tmp_path / "run")
    assert open_run(tmp_path / "run").sample(labels=[1, 2], seed=0).shape == (2, 8, 8, 1)
