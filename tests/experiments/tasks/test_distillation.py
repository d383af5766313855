"""Few-step students: every method trains and samples, with and without a teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation, digits_flow
from experiments import train
from experiments.configuration.runs import build, open_run
from experiments.launch.fine_tuning import transfer
from genjax.distillation import flow_maps

NETWORK = dict(patch_size=4, width=16, depth=1, num_heads=2, unroll=1)


def small(config, **changes):
    config.model.update(NETWORK)
    config.num_steps, config.batch_size = 2, 16
    config.checkpoint.every = 2
    config.evaluation.measures = {}
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of two steps, whose parameters are then as good as any."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train.run(small(digits_flow.get_config()), folder)
    return str(folder)


def student(method, teacher=None, **changes):
    config = small(digits_distillation.get_config(method), **changes)
    config.teacher = teacher
    return config.lock()  # as the program gets it


@functools.cache
def batch():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(16) % 10}


@pytest.mark.parametrize(
    ("method", "taught"),
    [
        ("MeanFlow", False),
        ("ImprovedMeanFlow", False),
        ("Shortcut", False),
        ("Lagrangian", True),
        ("Eulerian", True),
        ("Semigroup", True),
        ("Semigroup", False),
        ("Consistency", True),
        ("Consistency", False),
        ("ContinuousConsistency", False),
        ("GuidanceDistillation", True),
    ],
)
def test_a_step_of_every_method_moves_the_student_and_not_the_teacher(method, taught, teacher):
    config = student(method, teacher if taught else None)
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    frozen = task.frozen()
    before = jax.tree.map(np.copy, frozen)
    after, metrics = jax.jit(task.update)(state, batch(), jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    if taught:
        assert "teacher" in frozen[0]
        shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
        assert shapes(task.abstract_frozen()) == shapes(frozen)


def test_a_student_starts_as_its_teacher_and_jumps_by_its_network(teacher):
    """One jump of the untrained student is one Euler step of the teacher; four follow the map."""
    config = student("Semigroup", teacher)
    task, run = build(config), open_run(teacher)
    assert task.starts_from == teacher
    state = jax.jit(task.init)(jax.random.key(0))
    found = transfer(task.networks(state, "params"), {"network": run.variables})
    assert all("end_time_embedding" in fault for fault in found.faults) and found.taken > 10
    state = task.start_from(state, found.networks)
    labels, indices = jnp.arange(6), jnp.arange(6)
    sample = functools.partial(task.generate, state, jax.random.key(0), labels, indices)
    theirs = functools.partial(run.task.generate, run.state, jax.random.key(0), labels, indices)
    one = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(sample(1.0, one), theirs(1.0, one, weights="ema"), atol=1e-5)
    four = jnp.linspace(1.0, 0.0, 5)
    told = lambda x, t, s: task.network.apply(found.networks["network"], x, t, labels, end_time=s)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(indices)
    noise = task.process.prior(keys, (8, 8, 1))
    jump = flow_maps.flow_map(told, task.process, task.objective.target)
    by_hand = noise
    for t, s in zip(four[:-1], four[1:], strict=True):
        by_hand = jump(by_hand, jnp.full(6, t), jnp.full(6, s))
    np.testing.assert_allclose(sample(1.0, four), by_hand, atol=1e-5)


def test_a_student_told_the_scale_is_sampled_at_it(teacher):
    config = student("GuidanceDistillation", teacher)
    config.sampling.guidance_scale = 3.0
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), state.params
    )
    sample = lambda scale: task.generate(
        state.replace(params=params),
        jax.random.key(0),
        jnp.arange(3),
        jnp.arange(3),
        scale,
        jnp.array([1.0, 0.0]),
    )
    assert jnp.abs(sample(1.0) - sample(3.0)).max() > 1e-3


def test_what_does_not_fit_is_said_before_any_compute(teacher, tmp_path):
    with pytest.raises(ValueError, match="Lagrangian needs a teacher: set config.teacher"):
        build(student("Lagrangian"))
    with pytest.raises(ValueError, match="MeanFlow learns without a teacher; leave out"):
        build(student("MeanFlow", teacher))
    with pytest.raises(FileNotFoundError, match="nowhere, which has no run; train the teacher"):
        build(student("Lagrangian", f"{tmp_path}/nowhere"))
    with pytest.raises(ValueError, match="has the process RectifiedFlow.*, the student TrigFlow"):
        build(student("Lagrangian", teacher, process=dict(name="TrigFlow")))
    config = student("Lagrangian", teacher)
    config.data.name = "fashion_mnist"
    with pytest.raises(ValueError, match="has the data set digits, the student fashion_mnist"):
        build(config)
    config = student("MeanFlow")
    config.sampling.guidance_scale = 2.0
    with pytest.raises(
        ValueError, match="guidance_scale is 2.0, but a student of MeanFlow has the"
    ):
        build(config)


def test_a_run_of_a_student_goes_from_its_teacher_and_is_sampled_in_any_number_of_jumps(
    teacher, tmp_path
):
    config = student("Semigroup", teacher)
    train.run(config, tmp_path / "run")
    run = open_run(tmp_path / "run", num_steps=3)
    images = run.sample(labels=[1, 2], seed=0)
    assert images.shape == (2, 8, 8, 1)
    assert run.task.num_evaluations(run.config.sampling) == 3
