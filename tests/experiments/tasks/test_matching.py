"""Students with a critic: where they start, what moves when, and what their losses vanish at."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation, digits_flow
from experiments import train
from experiments.configuration.runs import build, open_run
from experiments.launch.fine_tuning import initializer
from experiments.tasks.matching import block_features
from experiments.tasks.methods.matching import DMD, DMD2, LADD, RCM, Game
from experiments.tasks.teachers import Teacher
from genjax.diffusion import (
    RectifiedFlow,
    Shifted,
    predict,
    targets,
    times,
    uniform_grid,
    weightings,
)
from genjax.models.transformers.dit import DiT
from genjax.training import Checkpoints
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import MLP

NETWORK = dict(patch_size=4, width=16, depth=2, num_heads=2, unroll=1)
PLAIN = dict(name="tests.experiments.small_jumps.Jumps")
WITH_HEADS = ("DMD2", "LADD")  # on features of blocks

FLOW = RectifiedFlow()


def small(config, network=NETWORK, **changes):
    if "name" in network:
        config.model = dict(network)
    else:
        config.model.update(network)
    config.num_steps, config.batch_size = 2, 16
    config.checkpoint.every, config.evaluation.measures = 2, {}
    config.sampling.per_class = 1
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return random_run(folder, small(digits_flow.get_config()))


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    return random_run(folder, small(digits_flow.get_config(), PLAIN))


def student(method, teacher, network=NETWORK, adapters=None, **fields):
    config = small(digits_distillation.get_config(method), network, teacher=teacher)
    config.adapters = adapters or {}
    config.method.update(fields)
    return config


@functools.cache
def batch():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(16) % 10}


def started(task):
    """Return the first state of a run from the teacher; to draw it, nothing is compiled."""
    abstract, random = jax.eval_shape(task.init, jax.random.key(0)), np.random.default_rng(0)
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)
    draw = lambda a: np.float32(0.1) * random.standard_normal(a.shape, np.float32)
    critic = state.critic.replace(params=jax.tree.map(draw, abstract.critic.params))
    state = jax.device_put(state.replace(critic=critic))
    return initializer(task, task.starts_from)(state)


def farthest(a, b):
    distance = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max()
    return max(jax.tree.leaves(jax.tree.map(distance, a, b)))


def updates(optimizer_state):
    """Return how many updates an optimizer has made."""
    counts = {int(a) for a in jax.tree.leaves(optimizer_state) if a.dtype == jnp.int32}
    return counts.pop() if len(counts) == 1 else counts


@pytest.fixture(scope="module")
def play(teacher, plain_teacher):
    """Return a function from a method to its task, first state, frozen parts and compiled step."""

    @functools.cache
    def start(method):
        chosen = (teacher, NETWORK) if method in WITH_HEADS else (plain_teacher, PLAIN)
        task = build(student(method, *chosen, steps=2))
        return task, started(task), task.frozen(), jax.jit(task.update)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("method", digits_distillation.MATCHING)
def test_student_and_fake_network_start_as_the_teacher_and_go_on_at_their_own_pace(method, play):
    task, state, frozen, update = play(method)
    before, theirs = jax.tree.map(np.copy, frozen), open_run(task.starts_from).variables["params"]
    fakes = [state.critic.params[part] for part in task.method.critic if part == "fake"]
    for params in (state.params, state.averages["ema"], *fakes):
        jax.tree.map(np.testing.assert_array_equal, params, theirs)
    after, metrics = update(state, batch(), jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["loss/critic"])
    assert farthest(state.params, after.params) > 0
    assert set(after.critic.params) == set(task.method.critic)
    for part in task.method.critic:
        assert farthest(state.critic.params[part], after.critic.params[part]) > 0
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    assert updates(after.optimizer_state) == 1
    assert updates(after.critic.optimizer_state) == task.method.critic_updates
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
    assert shapes(task.abstract_frozen()) == shapes(frozen)
    paths = ("params", "averages/ema/x", "critic/params/x")
    assert [task.is_sampled_from(path, "ema") for path in paths] == [False, True, False]


def test_a_student_whose_fake_network_is_the_unguided_teacher_has_nothing_to_learn(teacher):
    """At the start both scores are equal, up to rounding; another fake network parts them."""
    task = build(student("DMD", teacher, guidance_scale=1.0, regression=0.0))
    state, frozen = started(task), task.frozen()

    @jax.jit
    def loss(state, batch):
        game, x, key = task._student(state.params, batch, jax.random.key(2), state, *frozen)
        return task.method(key, game, x)[0]

    assert loss(state, batch()).max() < 1e-10
    moved = jax.tree.map(lambda a: a + 0.1, state.critic.params)
    other = state.replace(critic=state.critic.replace(params=moved))
    assert loss(other, batch()).min() > 1e-4


def test_the_samples_of_training_are_those_of_the_sampler(teacher):
    """One step: the jump from noise. Of a grid of four, each from its own time of the sampler."""
    task = build(student("DMD2", teacher))
    state, frozen = started(task), task.frozen()
    key, denoiser = jax.random.key(3), task.teacher.denoiser(frozen[0]["teacher"])

    @jax.jit
    def samples(batch):
        game, x, _ = task._student(state.params, batch, jax.random.key(0), state, *frozen)
        noise = game.draw_noise(jax.random.split(key)[0], x)
        one = denoiser(noise, jnp.ones(16), batch["label"]).clean
        return x, noise, one, game.simulated(key, x, 1), *game.noised(key, x, 4)

    x, noise, one, found, four, t = samples(batch())
    assert abs(noise.std() - 1) < 0.1  # of 1,024 numbers
    np.testing.assert_allclose(found, one, atol=1e-5)
    assert set(np.unique(t)) <= {0.25, 0.5, 0.75, 1.0} and four.shape == x.shape


def test_the_head_reads_the_tokens_after_each_block():
    network = DiT(num_classes=3, **NETWORK)
    x, t, labels = jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5), jnp.arange(2)
    random = np.random.default_rng(0)
    variables = jax.jit(network.init)(jax.random.key(0), x, t, labels)
    variables = jax.tree.map(
        lambda a: a + 0.1 * random.standard_normal(a.shape, np.float32), variables
    )
    read = lambda network: jax.jit(
        lambda variables: block_features(functools.partial(network.apply, variables), x, t, labels)
    )
    features = read(network)(variables)
    assert features.shape == (2, 2, 4, 16)
    one = network.clone(depth=1)  # the first block alone
    cut = variables | {
        "params": variables["params"]
        | {"blocks": jax.tree.map(lambda a: a[:1], variables["params"]["blocks"])}
    }
    np.testing.assert_allclose(features[:1], read(one)(cut), atol=1e-5)
    assert jnp.abs(features[1] - features[0]).max() > 0.1
    mlp = MLP(num_classes=3)
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), x, t, labels)
    with pytest.raises(ValueError, match="config.model has none; take a transformer such as DiT"):
        jax.eval_shape(read(mlp), shapes)


@pytest.mark.parametrize("method", WITH_HEADS)
def test_a_student_of_adapters_or_of_another_width_has_a_critic(method, teacher):
    """DMD2's heads read the fake network, which is the student's; LADD's read the teacher."""
    adapted = student(method, teacher, adapters=dict(source=teacher, rank=2))
    narrower = student(method, teacher, NETWORK | dict(width=8))
    of_teacher, of_student = NETWORK["width"], 8 if method == "DMD2" else NETWORK["width"]
    for config, width in ((adapted, of_teacher), (narrower, of_student)):
        task = build(config)
        state = jax.eval_shape(task.init, jax.random.key(0))
        kernel = state.critic.params["head"]["heads"]["linear_in"]["kernel"]
        assert kernel.shape == (2, width, 64)  # of two blocks
        after, _ = jax.eval_shape(
            task.update, state, batch(), jax.random.key(1), *task.abstract_frozen()
        )
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_rcm_takes_rectified_flow_alone(teacher, monkeypatch):
    config = student("RCM", teacher)
    config.process = dict(name="TrigFlow")
    with pytest.raises(
        ValueError, match="config.process is TrigFlow, but RCM is for RectifiedFlow"
    ):
        build(config)
    of_data = build(small(digits_flow.get_config(), target=dict(name="clean")))
    run = SimpleNamespace(task=of_data, network=of_data.network, config=config)
    monkeypatch.setattr(Teacher, "run", property(lambda _: run))
    config = student("RCM", teacher)
    config.process.domain = [0.01, 1.0]  # so that the teacher's target may be another
    with pytest.raises(ValueError, match="run's target is clean, but a network of RCM predicts"):
        build(config)


KEY, LABELS = jax.random.key(0), jnp.zeros(4, int)
X = jax.random.normal(jax.random.key(1), (4, 3))


def a_game(**changes):
    """Return what a method sees in a step, with a network of no parameters for each player."""
    network = lambda x, t, _: jnp.sin(x) * (1 + t)[:, None]
    fields = dict(
        network=network,
        averaged=None,
        condition=LABELS,
        null=0,
        condition_with_dropout=LABELS,
        dropped=LABELS > 0,
        process=FLOW,
        target=targets.velocity,
        times=times.uniform,
        teacher=predict(lambda x, t, _: 0.5 * x, FLOW, targets.velocity),
        progress=jnp.float32(0),
        fake=network,
        discriminator=None,
        grid=uniform_grid,
    )
    return Game(**fields | changes)


def test_the_teacher_of_a_dropped_condition_is_unconditional():
    """The teacher's velocity is the label, and 0 without one. Guidance triples it."""
    teacher = predict(lambda x, t, labels: 0 * x + labels[:, None], FLOW, targets.velocity)
    game = a_game(condition=LABELS + 1, dropped=jnp.arange(4) < 2, teacher=teacher)
    found = game.guided_velocity(X, jnp.full(4, 0.5), 3.0)
    np.testing.assert_allclose(found, np.repeat([[0, 0, 3, 3]], 3, axis=0).T, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "weight", "loss_of"),
    [
        (DMD(), "regression", DMD.__call__),
        (DMD2(), "adversarial", DMD2.__call__),
        (DMD2(), "discriminator", DMD2.critic_loss),
        (RCM(), "consistency", RCM.__call__),
        (RCM(), "matching", RCM.__call__),
    ],
)
def test_a_term_of_a_loss_grows_with_its_weight(method, weight, loss_of):
    """By as much from 1 to 2 as from 0 to 1."""
    game = a_game(discriminator=lambda x_t, t, _: x_t.sum(1), weighting=weightings.uniform)

    def loss(value):
        found = loss_of(dataclasses.replace(method, **{weight: value}), KEY, game, X)
        return found[0] if isinstance(found, tuple) else found

    first, second = np.diff(jax.jit(jax.vmap(loss))(jnp.arange(3.0)), axis=0)
    np.testing.assert_allclose(first, second, rtol=0.01)  # beside terms a hundred times as large
    assert np.abs(first).min() > 0


def test_students_and_critics_play_the_games_of_their_papers():
    """DMD2's is non-saturating, and LADD's has the hinge loss. All examples have one logit."""
    logit = 0.3
    judge = lambda x_t, t, _: jnp.full(len(t), logit)
    game = a_game(discriminator=judge, weighting=weightings.uniform)

    @jax.jit
    def losses(weight):
        dmd2 = DMD2(adversarial=weight, discriminator=weight)
        students = dmd2(KEY, game, X)[0], LADD()(KEY, game, X)[0]
        return *students, dmd2.critic_loss(KEY, game, X), LADD().critic_loss(KEY, game, X)

    without, with_game = losses(0.0), losses(1.0)
    softplus = lambda logit: np.log1p(np.exp(logit))
    np.testing.assert_allclose(with_game[0] - without[0], softplus(-logit), rtol=1e-5)
    both = softplus(logit) + softplus(-logit)
    np.testing.assert_allclose(with_game[2] - without[2], both, rtol=1e-5)
    np.testing.assert_allclose(without[1], -logit, rtol=1e-6)
    np.testing.assert_allclose(without[3], (1 - logit) + (1 + logit), rtol=1e-6)


def test_the_fake_networks_loss_has_the_configs_weighting():
    """DMD2 weighs the squared error of x̂ by sigma⁻² + s⁻². It is sigma² that of the velocity."""
    t, s = 0.25, 0.5
    loss = lambda weighting: a_game(
        times=lambda process, u: jnp.full_like(u, t), weighting=weighting
    ).fake_loss(jax.random.key(0), X)
    edm = functools.partial(weightings.edm, data_deviation=s)
    weight = t**2 * ((1 - t) ** 2 / t**2 + 1 / s**2)  # sigma/alpha is t/(1 − t)
    np.testing.assert_allclose(loss(edm), weight * loss(weightings.uniform), rtol=1e-5)


def test_rcm_has_its_papers_numbers():
    """NVlabs/rcm:rcm/models/t2v_model_distill_rcm.py; its match has a factor ½ less than ours."""
    method = RCM()
    assert (method.consistency, method.matching / 2) == (100, 1)
    assert (method.mean, method.deviation) == (0.7, 1.6)


def test_a_student_trains_for_the_times_of_its_sampler(teacher):
    """rCM's are 1.5, 1.4 and 1.0 of TrigFlow, levels of tan(t); its code's first is 80."""
    levels = (80.0, *np.tan([1.5, 1.4, 1.0]).tolist(), 0.002)
    config = student("RCM", teacher)
    config.sampling.grid = dict(name="align_your_steps_grid", levels=levels)
    grid = build(config).grid
    np.testing.assert_allclose(
        grid(FLOW, 4), [1, 0.933781, 0.852895, 0.608979, 0], atol=1e-6
    )  # the published times of rectified flow
    game, seen = a_game(grid=grid, network=lambda x, t, _: seen.append(t) or 0 * x), []
    _, t = game.noised(jax.random.key(0), jnp.zeros((64, 3)), 4)
    np.testing.assert_array_equal(np.unique(t), np.sort(np.asarray(grid(FLOW, 4)[:-1])))
    seen.clear()
    with jax.disable_jit():
        game.simulated(jax.random.key(0), jnp.zeros((64, 3)), 4)
    *walked, last = seen  # three jumps without gradient, and the one from a time of each example
    np.testing.assert_array_equal([float(t[0]) for t in walked], grid(FLOW, 4)[:-2])
    np.testing.assert_array_equal(np.unique(last), np.sort(np.asarray(grid(FLOW, 4)[:-1])))


def test_rcms_warm_up_of_no_length_is_over_at_the_first_step():
    def loss(warmup, progress):
        game = a_game(progress=jnp.float32(progress))
        return RCM(warmup=warmup)(jax.random.key(0), game, X)[0]

    np.testing.assert_array_equal(loss(0.0, 0.0), loss(0.1, 0.1))


def test_dmds_pairs_end_without_noise_on_every_process():
    """If all players answer one x̂, the teacher's sample is that x̂, and no loss is left."""
    process = Shifted(base=FLOW, shift=4.0)
    network = lambda x, t, _: jnp.full_like(x, 0.5)
    game = a_game(
        process=process,
        target=targets.clean,
        network=network,
        fake=network,
        teacher=predict(network, process, targets.clean),
    )
    np.testing.assert_allclose(DMD()(jax.random.key(0), game, X)[0], 0, atol=1e-9)


@pytest.mark.slow
def test_a_run_goes_on_to_the_last_bit(play, tmp_path):
    """From a checkpoint as from memory: student, fake network, heads and their optimizers."""
    _, state, frozen, update = play("DMD2")
    state = update(state, batch(), jax.random.key(1), *frozen)[0]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    restored = checkpoints.restore(1, abstract)
    go_on = lambda state: update(state, batch(), jax.random.key(2), *frozen)[0]
    jax.tree.map(np.testing.assert_array_equal, go_on(restored), go_on(state))


@pytest.mark.slow
def test_a_run_is_sampled_in_any_number_of_steps(plain_teacher, tmp_path):
    train.run(student("DMD", plain_teacher, PLAIN, steps=2), tmp_path / "run")
    run = open_run(tmp_path / "run", num_steps=3)
    assert run.sample(labels=[1, 2], seed=0).shape == (2, 8, 8, 1)
