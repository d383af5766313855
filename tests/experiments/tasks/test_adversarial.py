"""Test the task of GANs: which player moves when, on any devices and after interruptions."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits_gan, fashion_gan, gaussians_gan
from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.launch.experiment import Experiment
from experiments.tasks.optimization import Player
from experiments.tasks.penalties import Penalties, Regularizer
from genjax.adversarial import Anchors
from genjax.data import Batches, load_dataset, to_float
from genjax.training import Checkpoints
from tests.experiments import gan_run
from tests.experiments.launching import arrays_of
from tests.experiments.launching import run as run_command
from tests.virtual_devices import lines_of

ROOT = Path(__file__).parents[3]


def plane(**changes):
    """Dense layers on points, small."""
    config = gaussians_gan.get_config("r3gan")
    config.unlock()
    config.batch_size, config.updates.generator = 16, 1
    for player in (config.model.generator, config.model.discriminator):
        player.update(width=8, depth=1)
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (config[part] if part else config)[field] = value
    return config


def points(step=0, count=16):
    random = np.random.default_rng(step)
    return {
        "image": random.standard_normal((count, 2), np.float32),
        "label": np.zeros(count, np.int32),
    }


QUICK = {
    "xla_backend_optimization_level": 0
}  # compiles in less time, for programs that run a few times


PROGRAMS = {}


def programs(config):
    """Return the task of a config, its first state and its compiled update, made once."""
    name = config.to_json(sort_keys=True)
    if name not in PROGRAMS:
        task = build(config)
        state = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))
        PROGRAMS[name] = task, state, jax.jit(task.update, compiler_options=QUICK)
    return PROGRAMS[name]


def history(config, steps):
    """Return states and metrics after each step."""
    (_, state, update), found = programs(config), []
    for step in range(steps):
        state, metrics = update(state, points(step, config.batch_size), jax.random.key(1))
        found.append((state, metrics))
    return found


def after(config, steps=1):
    return history(config, steps)[-1]


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_alternately_the_generator_meets_the_discriminator_as_it_has_become():
    """The generators of the two ways differ, and the discriminators agree.

    Simultaneous updates are those against the discriminator of the start, however fast it moves. So
    they equal alternating ones whose discriminator does not move.
    """
    alternating, simultaneous = (
        after(plane(updates__simultaneous=way))[0] for way in (False, True)
    )
    assert same(alternating.discriminator, simultaneous.discriminator)
    assert not same(alternating.generator.params, simultaneous.generator.params)
    still = dict(plane().optimizer.discriminator, learning_rate=0.0)
    against_the_first = after(plane(optimizer__discriminator=still))[0]
    assert same(against_the_first.generator, simultaneous.generator)


def count_of(player):
    return int(player.optimizer_state[0].count)


@pytest.mark.slow
@pytest.mark.parametrize(("of_discriminator", "of_generator"), [(4, 1), (2, 3)])
def test_any_ratio_of_updates(of_discriminator, of_generator):
    updates = dict(updates__discriminator=of_discriminator, updates__generator=of_generator)
    config = plane(num_steps=4, **updates)
    state, metrics = after(config, steps=2)
    assert count_of(state.discriminator) == 2 * of_discriminator
    assert count_of(state.generator) == 2 * of_generator
    assert int(state.step) == 2
    assert metrics["loss/discriminator"].count == of_discriminator
    assert metrics["loss/generator"].count == of_generator
    for player, fields in config.optimizer.items():  # a cosine over all of a player's updates
        expected = fields.learning_rate * (1 + np.cos(np.pi / 4)) / 2
        np.testing.assert_allclose(metrics[f"learning_rate/{player}"], expected, rtol=1e-6)


def test_each_update_has_its_own_part_of_the_batch():
    """The discriminator's two see the two halves of the batch, and the generator's go round."""
    task = build(plane(updates__discriminator=2, updates__generator=3))
    state = jax.jit(task.init)(jax.random.key(0))
    seen = {"_update_discriminator": [], "_update_generator": []}

    def spy(name, place):
        step = getattr(task, name)

        def update(*arguments):
            seen[name].append(arguments[place])
            return step(*arguments)

        object.__setattr__(task, name, update)

    spy("_update_discriminator", 1)
    spy("_update_generator", 2)
    batch = points()
    parts = jax.jit(lambda *args: (task.update(*args), seen)[1])(state, batch, jax.random.key(1))
    halves = parts["_update_discriminator"]
    assert [len(half) for half in halves] == [8, 8]
    np.testing.assert_array_equal(np.sort(np.concatenate(halves), 0), np.sort(batch["image"], 0))
    np.testing.assert_array_equal(parts["_update_generator"], [halves[0], halves[1], halves[0]])
    assert task._seen(state.replace(step=jnp.int32(3))) == 3 * 16


def test_two_time_scales():
    """Adam's first step moves each parameter that has a gradient by the learning rate."""
    rates = dict(generator=1e-4, discriminator=4e-4)
    config = plane()
    for player, rate in rates.items():
        config.optimizer[player].learning_rate = rate
    _, state, update = programs(config)
    moved, _ = update(state, points(), jax.random.key(1))
    for player, rate in rates.items():
        changes = jax.tree.map(
            lambda a, b: jnp.abs(a - b), moved.params[player], state.params[player]
        )
        largest = max(float(change.max()) for change in jax.tree.leaves(changes))
        np.testing.assert_allclose(
            largest, rate, rtol=0.02
        )  # g/(|g| + 1e-8), and the float32 of a difference


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(weight=1.0, evry=4), "r1.evry is set, which Regularizer does not take; .*'every'"),
        (dict(every=4), r"r1 is {'every': 4}; set config.regularizers.r1 = dict\(weight=…\)"),
        (0.2, r"r1 is 0.2; set config.regularizers.r1 = dict\(weight=…\)"),
    ],
)
def test_a_penalty_of_wrong_fields_is_refused(fields, words):
    with pytest.raises(ValueError, match=f"^config.regularizers.{words}"):
        Penalties.from_config({"r1": fields}, None)


def test_a_weight_goes_to_its_end_as_a_half_cosine():
    regularizer = Regularizer(0.4, end_weight=0.1, burn_in=100)
    steps = jnp.array([0, 25, 50, 100, 10**6])
    quarter = 0.25 + 0.15 * np.cos(np.pi / 4)
    np.testing.assert_allclose(
        regularizer.weight_at(steps), [0.4, quarter, 0.25, 0.1, 0.1], rtol=1e-6
    )
    # a step far beyond the burn-in is one with the end weight from the start; at its beginning,
    # with the first
    end, first, burning = (
        plane(regularizers=dict(r1=fields))
        for fields in (
            dict(weight=0.9),
            dict(weight=0.3),
            dict(weight=0.3, end_weight=0.9, burn_in=100),
        )
    )
    _, start, update = programs(burning)
    early, late = (
        update(start.replace(step=jnp.int32(step)), points(0), jax.random.key(1))[0]
        for step in (0, 1000)
    )
    assert same(after(first)[0].discriminator, early.discriminator)
    moments = [state.discriminator.optimizer_state[0].nu for state in (late, after(end)[0])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-12), *moments)


def test_the_gradients_of_both_players_are_those_of_the_written_out_losses():
    """The discriminator has four penalties, and the generator meets it after its step.

    Adam's first moments are the gradients, because their decay is 0.
    """
    weights = dict(r1=0.3, r2=0.2, interpolated=0.1, lecam=0.4)
    x = jnp.asarray(points()["image"])
    penalties = {name: dict(weight=weight) for name, weight in weights.items()}
    task, state, update = programs(plane(objective="non_saturating", regularizers=penalties))
    state = state.replace(anchors=Anchors(jnp.float32(0.7), jnp.float32(-0.4)))
    after, metrics = update(state, points(), jax.random.key(1))
    # as an update draws them, of the first of its keys for each player
    keys = [jax.random.split(key, 1)[0] for key in jax.random.split(jax.random.key(1))]
    latent_keys, _, penalty_keys = zip(*(jax.random.split(key, 3) for key in keys), strict=True)
    z = [jax.random.normal(jax.random.split(key)[0], (16, 2)) for key in latent_keys]
    share = jax.random.uniform(penalty_keys[0], (16, 1))
    generate = lambda params, z: task.generator.apply({"params": params}, z)
    judge = lambda params, x: task.discriminator.apply({"params": params}, x)
    slopes = lambda params: jax.vmap(jax.grad(lambda x: judge(params, x[None])[0]))

    def of_discriminator(params):
        fakes = generate(state.generator.params, z[0])
        real, fake = judge(params, x), judge(params, fakes)
        square = lambda x: jnp.square(slopes(params)(x)).sum(1)
        between = jnp.sqrt(square(share * x + (1 - share) * fakes))
        terms = {
            "r1": square(x).mean(),
            "r2": square(fakes).mean(),
            "interpolated": jnp.square(between - 1).mean(),
            "lecam": (jnp.square(real + 0.4) + jnp.square(fake - 0.7)).mean(),
        }
        added = {name: weights[name] * term for name, term in terms.items()}
        loss = (jax.nn.softplus(-real) + jax.nn.softplus(fake)).mean()
        metrics = {f"regularizer/{name}": term for name, term in added.items()}
        metrics |= {
            "loss/discriminator": loss,
            "logit/real": real.mean(),
            "logit/fake": fake.mean(),
        }
        by_fakes = (jax.nn.softplus(fake) + 0.4 * jnp.square(fake - 0.7)).mean()
        return jnp.stack([loss + sum(added.values()), by_fakes]), metrics

    def of_generator(params):
        return jax.nn.softplus(-judge(after.discriminator.params, generate(params, z[1]))).mean()

    def written_out():
        by_both, metrics = jax.jacrev(of_discriminator, has_aux=True)(state.discriminator.params)
        by_params, by_fakes = (jax.tree.map(lambda a, i=i: a[i], by_both) for i in (0, 1))
        metrics["norm/gradient_of_discriminator_by_generated"] = optax.tree.norm(by_fakes)
        loss, by_generator = jax.value_and_grad(of_generator)(state.generator.params)
        fakes, opponent = generate(state.generator.params, z[1]), after.discriminator.params
        by_images = jax.nn.sigmoid(-judge(opponent, fakes))[:, None] * slopes(opponent)(fakes)
        metrics["norm/gradient_of_images"] = jnp.linalg.norm(by_images, axis=1).mean()
        return metrics | {"loss/generator": loss}, by_params, by_generator

    expected, *gradients = jax.jit(written_out, compiler_options=QUICK)()
    for name, value in expected.items():  # float32
        np.testing.assert_allclose(metrics[name].total, value, rtol=1e-4, err_msg=name)
    for player, gradient in zip((after.discriminator, after.generator), gradients, strict=True):
        for a, b in zip(
            *map(jax.tree.leaves, (player.optimizer_state[0].mu, gradient)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    means = expected["logit/real"], expected["logit/fake"]
    anchors = 0.99 * np.array([0.7, -0.4]) + 0.01 * np.array(means)
    np.testing.assert_allclose(after.anchors, anchors, rtol=1e-5)


def test_a_lazy_penalty_is_logged_where_it_is_computed_and_as_the_eager_one():
    eager, lazy = (
        plane(regularizers=dict(r1=dict(weight=0.3))),
        plane(regularizers=dict(r1=dict(weight=0.3, every=3))),
    )
    found = history(lazy, 4)
    assert [float(metrics["regularizer/r1"].count) for _, metrics in found] == [1, 0, 0, 1]
    of = [metrics["regularizer/r1"] for _, metrics in (after(eager), found[0])]
    np.testing.assert_allclose(of[0].total, of[1].total, rtol=1e-6)  # as added at every step
    # while the loss holds three times as much of it: so do the gradients, and Adam's second moments
    # know
    loss = after(plane(regularizers=dict(r1=dict(weight=0.9))))[0], found[0][0]
    assert all(
        np.allclose(a, b, rtol=1e-5, atol=1e-7)
        for a, b in zip(*map(jax.tree.leaves, (s.discriminator for s in loss)), strict=True)
    )


def test_orthogonality_is_a_part_of_the_generators_loss():
    """Its gradient, 4·W·(WᵀW ⊙ (1 − I)), is all of the generator's if its weight is large."""
    weight = 1e6
    config = plane(regularizers=dict(orthogonality=dict(weight=weight)))
    params = programs(config)[1].generator.params
    paths = jax.tree_util.tree_leaves_with_path(params)
    kernels = [np.float64(array) for path, array in paths if "kernel" in jax.tree_util.keystr(path)]
    products = [w.T @ w - np.diag(np.square(w).sum(0)) for w in kernels]
    slopes = [4 * w @ product for w, product in zip(kernels, products, strict=True)]
    metrics = after(config)[1]
    found = metrics["regularizer/orthogonality"]
    value = sum(np.square(product).sum() for product in products)
    np.testing.assert_allclose(found.total / found.count, weight * value, rtol=1e-4)
    norm = np.sqrt(sum(np.square(slope).sum() for slope in slopes))
    np.testing.assert_allclose(
        metrics["norm/gradient_of_generator"].total, weight * norm, rtol=1e-4
    )


class Styled(nn.Module):
    """A generator of 2×2 pixels, linear in squares of its two styles, with noise in training."""

    latent_size: int = 3

    def setup(self):
        self.to_x = nn.Dense(4, use_bias=False)

    def map(self, z, labels=None, *, truncation=1.0, train=False):
        return truncation * jnp.stack([z, 2 * z], axis=1)

    def synthesize(self, w, *, train=False):
        images = self.to_x(jnp.square(w).reshape(len(w), -1)).reshape(-1, 2, 2, 1)
        return images + (jax.random.normal(self.make_rng("noise"), images.shape) if train else 0)


def styled():
    """Return a task with a penalty of path lengths at every third step, and its player."""
    penalties = Penalties.from_config(dict(path_length=dict(weight=2.0, every=3)), Styled())
    task = dataclasses.replace(programs(plane())[0], generator=Styled(), penalties=penalties)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4), np.float32))
    return task, Player.create({"params": {"to_x": {"kernel": kernel}}}, task.optimizers[0])


def test_path_lengths_are_a_part_of_the_generators_loss_and_have_a_running_mean():
    """Pixels are Kᵀw² with the kernel K, so lengths are |2w·(Ky)|/√styles/√pixels."""
    task, player = styled()
    _, *keys = jax.random.split(jax.random.key(1), 3)
    z, y = (jax.random.normal(key, (5, size)) for key, size in zip(keys, (3, 4), strict=True))
    w = jnp.concatenate([z, 2 * z], axis=1)

    def written_out(params):
        lengths = jnp.linalg.norm(2 * w * (y @ params["to_x"]["kernel"].T), axis=1) / np.sqrt(2 * 4)
        mean = 0.7 + 0.01 * (lengths.mean() - 0.7)
        return 3 * 2.0 * jnp.square(lengths - mean).mean(), mean

    penalties = jax.jit(task._generator_penalties, static_argnums=5, compiler_options=QUICK)
    start = jnp.float32(0.7), None, jax.random.key(1), 5
    gradients, added, mean = penalties(player, jnp.int32(6), *start)
    (value, after), expected = jax.value_and_grad(written_out, has_aux=True)(player.params)
    np.testing.assert_allclose(added["path_length"], (value, 1), rtol=1e-5)  # float32
    np.testing.assert_allclose(mean, after, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), gradients, expected)
    gradients, added, mean = penalties(player, jnp.int32(7), *start)
    assert mean == start[0] and optax.tree.norm((gradients, added)) == 0


def test_samples_of_a_generator_with_styles_have_noise_of_their_own_and_are_truncated_in_w():
    task, player = styled()
    state = programs(plane())[1].replace(generator=player)
    generate = jax.jit(task.generate, compiler_options=QUICK)
    of = lambda indices, truncation: np.asarray(
        generate(state, jax.random.key(3), 0 * indices, indices, jnp.float32(truncation))
    )
    noise, images, half = (of(np.arange(3), truncation) for truncation in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(half - noise, (images - noise) / 4, atol=1e-5)
    assert all(np.abs(np.diff(each, axis=0)).max() > 0.1 for each in (noise, images - noise))
    np.testing.assert_array_equal(of(np.array([2, 0, 9]), 1.0)[:2], images[[2, 0]])


def test_samples_depend_on_their_own_index_and_a_walk_ends_in_them():
    config = digits_gan.get_config("dcgan")
    config.model.generator.width = config.model.discriminator.width = 8
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    generate = jax.jit(task.generate, static_argnames=("weights", "trajectory"))
    labels, indices = np.arange(6), np.arange(6)
    options = dict(weights="ema")
    together = generate(state, jax.random.key(3), labels, indices, jnp.float32(1), **options)
    assert together.shape == (6, 8, 8, 1)
    apart = generate(state, jax.random.key(3), labels[4:5], indices[4:5], jnp.float32(1), **options)
    np.testing.assert_allclose(apart[0], together[4], rtol=1e-5, atol=1e-8)
    frames = generate(
        state, jax.random.key(3), labels, indices, jnp.float32(1), trajectory=True, **options
    )
    np.testing.assert_allclose(frames[-1], together, rtol=1e-5, atol=1e-8)
    assert np.abs(frames[0] - frames[-1]).max() > 0.3 * np.abs(together).max()
    # truncated to nothing, all samples of a class are one
    flat = generate(state, jax.random.key(3), 0 * labels, indices, jnp.float32(0), **options)
    np.testing.assert_allclose(flat, flat[:1].repeat(6, 0), rtol=1e-5, atol=1e-8)


def test_resumed_in_the_middle_it_is_bitwise_the_same(tmp_path):
    config = plane(
        regularizers=dict(r1=dict(weight=0.3, every=2), lecam=dict(weight=0.1)), batch_size=32
    )
    task, key = build(config), jax.random.key(1)
    batches = Batches(load_dataset("ring_of_gaussians"), 32, 0, image_shape=(2,))
    update = jax.jit(task.update)
    state, history = jax.jit(task.init)(jax.random.key(0)), []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(8):
            if step == 4:
                checkpoints.save(4, state)
            state, metrics = update(state, batches[step], key)
            history.append(metrics)
        checkpoints.wait()
        resumed = checkpoints.restore(4, jax.eval_shape(task.init, jax.random.key(0)))
    for step in range(4, 8):
        resumed, metrics = update(resumed, batches[step], key)
        assert same(metrics, history[step])
    assert same(resumed, state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict(model__generator=dict(name="Generator")),
            "config.model.generator.name is 'Generator', which "
            "several.*dcgan.Generator.*vit_gan.Generator",
        ),
        (dict(objective="hinged"), "config.objective is 'hinged'.*non_saturating"),
        (dict(regularizers=dict(r3=dict(weight=1.0))), "has 'r3'; there are r1, r2"),
        (dict(regularizers=dict(path_length=dict(weight=1.0))), "mlp_gan has none"),
        (dict(augmentations=("colour",)), "'colour'.*color"),
        (
            dict(updates__discriminator=3),
            "batch_size 16 divide into config.updates.discriminator 3",
        ),
        (
            dict(regularizers=dict(r1=dict(weight=1.0, end_weight=0.1))),
            "both of end_weight and burn_in",
        ),
        (dict(regularizers=dict(r1=dict(weight=1.0, every=0))), "an `every` of at least 1"),
        (dict(updates__generator=0), "config.updates must be positive"),
        (dict(updates__discriminator=0), "config.updates must be positive"),
        (dict(blur=dict(sigma=10.0)), "config.blur has sigma: set both sigma and images"),
        (
            dict(adaptive_augmentation=dict(target=0.7)),
            "config.adaptive_augmentation has target and no name of a part: set --config.adapt",
        ),
        (dict(accumulation_steps=2), "accumulation_steps must be 1"),
        (
            dict(
                optimizer__generator=base.optimizer(name="schedule_free_adamw", schedule="constant")
            ),
            "config.optimizer.generator.name is 'schedule_free_adamw', which averages by itself",
        ),
        (
            dict(condition=base.captions()),
            "config.condition.name is Prompts, which no network of a GAN takes",
        ),
        *(
            (changes, r"leave out config.augm.* cannot change examples of shape \[2\]")
            for changes in (
                dict(augmentations=("color",)),
                dict(adaptive_augmentation=dict(name="ADA")),
                dict(blur=dict(sigma=2.0, images=100)),
            )
        ),
        (dict(blur=dict(sigma=2.0, images=0)), "positive number of images; got .*images=0"),
        (dict(blur=dict(sigma=-1.0, images=9)), "a sigma of at least 0.*got sigma=-1.0"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        build(plane(**changes))


def test_logits_of_any_number_of_examples():
    """The discriminator's groups of 8 divide a batch of 32, and neither 30 nor 70."""
    task = build(gan_run.small_config("stylegan2"))
    state = jax.jit(task.init)(jax.random.key(0))
    logits_of = task.functions(state, None)["logits"]
    judge = jax.jit(task.discriminator.apply)
    for count in (30, 70):
        examples = np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
        labels = np.arange(count) % 10
        logits = logits_of(examples, labels)
        assert logits.shape == (min(count, 64),)
        first = np.resize(np.arange(count), 32)
        expected = judge(state.discriminator.variables, examples[first], labels[first])
        np.testing.assert_allclose(logits[:30], expected[:30], rtol=1e-5, atol=1e-5)


def test_a_discriminator_of_latents_judges_no_images():
    """So a measure that needs its logits is refused before training."""
    task, state, _ = programs(plane())
    assert task.functions(state, None).keys() == {"logits", "objective"}
    space = SimpleNamespace(shape=(2,), autoencoder="of some run")
    assert dataclasses.replace(task, space=space).functions(None, None) == {}


@pytest.mark.parametrize("choice", ["dcgan", "stylegan2", "r3gan", "vit_gan"])
def test_every_choice_traces(choice):
    configs = [digits_gan.get_config(choice)]
    configs += [fashion_gan.get_config(choice)] if choice in ("dcgan", "r3gan") else []
    for config in configs:
        task = build(config)
        batch = {
            "image": jax.ShapeDtypeStruct((64, *config.data.image_shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((64,), jnp.int32),
        }
        state = jax.eval_shape(task.init, jax.random.key(0))
        after, metrics = jax.eval_shape(task.update, state, batch, jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), state
        )
        assert {f"regularizer/{name}" for name in config.regularizers} <= metrics.keys()


def test_an_evaluation_sees_collapse():
    """The generator makes one sample for each class, because a truncation of 0 removes z."""
    config = digits_gan.get_config("dcgan")
    config.model.generator.width = config.model.discriminator.width = 8
    config.objective, config.evaluation.num_samples = "hinge", 360
    config.sampling.truncation = 0.0
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    experiment = Experiment.from_config(config, task)
    report = experiment.evaluate(experiment.model(state))
    assert report["duplicate_rate"] == 1 and report["recall"] < 0.1 and report["num_samples"] == 360
    assert report["num_modes"] == 10 and report["truncation"] == 0
    sentences = task.alarms(
        {name: value for name, value in report.items() if isinstance(value, float)}
    )
    assert any("100% of the samples have a near duplicate" in sentence for sentence in sentences)
    edge = [report[f"accuracy/{name}"] for name in ("train", "held_out", "samples")]
    assert all(0 <= share <= 1 for share in edge)
    # against the logits themselves, by the network alone
    digits = load_dataset("digits", "train").source[:]
    real = to_float(digits["image"])[np.random.default_rng(0).permutation(1437)[:360]]
    labels = digits["label"][np.random.default_rng(0).permutation(1437)[:360]]
    logits = jax.jit(task.discriminator.apply)(state.discriminator.variables, real, labels)
    judged = np.mean(logits[:320] > 0)  # five batches of 64
    np.testing.assert_allclose(report["accuracy/train"], judged, atol=1 / 320)
    assert report["logits"].size[0] > 100


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path):
    """Train, evaluate, sample; what a GAN has no such thing for is refused."""
    run = tmp_path / "run"
    every = [
        f"--config.{name}=10"
        for name in ("log_every", "checkpoint.every", "sampling.every", "evaluation.every")
    ]
    result = run_command(
        "train", f"--config={ROOT}/configs/gaussians_gan.py:saturating", f"--workdir={run}",
        "--config.num_steps=20", "--config.evaluation.num_samples=500", *every,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((run / "report.json").read_text())
    assert report["modes_covered"] < 23 and any(
        "Mode collapse" in each for each in report["alarms"]
    )
    assert "ALARM at step 10: Mode collapse" in result.stdout
    for name in (
        "samples.png",
        "latent_walk.gif",
        "curves.png",
        "report.html",
        "logits/step_000020.png",
    ):
        assert (run / name).exists(), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*rows)
    assert {
        "loss/generator",
        "slope/generator",
        "norm/gradient_of_images",
        "accuracy/held_out",
        "recall",
    } <= logged
    assert not {"truncation", "frechet_distance_train"} & logged

    result = run_command(
        "evaluate", f"--workdir={run}", f"--out={tmp_path / 'half.json'}", "--truncation=0.5"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "half.json").read_text())["truncation"] == 0.5
    result = run_command("sample", f"--workdir={run}", f"--out={tmp_path / 'a.npz'}", "--count=2")
    assert result.returncode == 0 and "truncation 1" in result.stdout, result.stderr
    assert arrays_of(tmp_path / "a.npz")["images"].shape == (2, 2)
    for name, flags, words in (
        (
            "sample",
            ["--guidance_scale=2"],
            "is not sampled by guidance_scale; samples depend on",
        ),
        ("likelihood", [], "only runs of diffusion can do this"),
    ):
        result = run_command(name, f"--workdir={run}", *flags)
        assert (
            result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr
        )
    result = run_command("sweep", run, f"--out={tmp_path / 'sweep.json'}")
    assert result.returncode == 1 and "is not sampled by sampler" in result.stderr


@pytest.mark.slow
def test_on_eight_devices_it_is_as_on_one():
    """Batch norm's statistics, the minibatch deviation and r_t cover the batch of all devices."""
    meshed = 'vit_gan={"data": 2, "tensor": 2, "context": 2}'
    lines = lines_of("tests.experiments.gan_run", 8, "stylegan2", "ada", meshed)
    for choice, eight in zip(("stylegan2", "ada", "vit_gan"), lines, strict=True):
        one = gan_run.run(choice, {"data": -1})
        assert len(one) == 3
        for a, b in zip(one, eight, strict=True):
            assert a.keys() == b.keys()
            for name in a:  # sums in another order; 1e-6 was seen
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)
