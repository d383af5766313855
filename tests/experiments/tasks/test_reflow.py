"""Reflow as an experiment: a teacher's pairs on disk, students of them, and students of those."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import digits_distillation
from experiments import train
from experiments.configuration.runs import build, open_run
from experiments.inputs.autoencoders import on_host
from experiments.launch.encoding import write
from experiments.launch.teacher_pairs import TeacherPairs
from experiments.tasks.teachers import Teacher
from genjax.data import to_uint8
from genjax.data.sets import latents
from genjax.pretrained.variables import parameters_digest
from genjax.training import Checkpoints
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config

PART, COUNT, SAMPLING = 32, 80, dict(num_steps=3, seed=1)
SHORT = dict(num_steps=2, batch_size=16)


@pytest.fixture(scope="module", autouse=True)
def short_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "PART", PART)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reflow") / "teacher"
    config = small_config(**SHORT)
    config.optimizer.warmup = 0.0
    random_run(folder, config)
    return folder


def student(teacher, choice="Reflow", folder="pairs"):
    config = digits_distillation.get_config(choice)
    config.model = small_config().model
    config.update(SHORT)
    config.checkpoint.every, config.evaluation.measures = 2, {}
    config.teacher = str(teacher)
    directory = str(teacher.parent / folder)
    config.pairs.update(directory=directory, count=COUNT, batch_size=12, sampling=SAMPLING)
    return config


@pytest.fixture(scope="module")
def pairs(teacher):
    """The config of a reflow whose pairs have been made, and the pairs. Do not change them."""
    config = student(teacher)
    folder = write(config)
    return config, latents.load_latents("train", folder, preload_bytes=10**9)


def test_pairs_are_the_teachers_samples_and_the_noise_of_each(teacher, pairs):
    config, dataset = pairs
    made, labels = dataset.source[:]["image"], dataset.source[:]["label"]
    assert made.shape == (COUNT, 2, 8, 8, 1) and dataset.num_classes == 10
    np.testing.assert_array_equal(labels, np.arange(COUNT) % 10)
    run = open_run(teacher)
    sampled = run.sample(labels, **SAMPLING)
    # Bytes may round differently where batches of 12 and 80 are summed in another order.
    assert np.abs(np.asarray(to_uint8(made[:, 1]), int) - sampled).max() <= 1
    assert made[:, 1].std() > 0.1
    key = jax.random.fold_in(jax.random.key(1), 7)
    np.testing.assert_array_equal(made[7, 0], jax.random.normal(key, (8, 8, 1)))
    # 5,120 values: a deviation that is wrong by 5 % would be seen with probability 0.99.
    assert stats.kstest(made[:, 0].ravel(), "norm").pvalue > 1e-3


def test_pairs_made_again_are_only_those_that_are_missing(pairs):
    config, _ = pairs
    first, second, last = latents.part_paths(config.pairs.directory, "train", COUNT)
    before, untouched = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    write(config)
    assert second.read_bytes() == before and first.stat().st_mtime_ns == untouched


def test_pairs_of_another_interval_of_guidance_are_refused(teacher, pairs):
    config = student(teacher)
    config.pairs.sampling.guidance_interval = (0.2, 0.8)
    with pytest.raises(ValueError, match="was made of .*'guidance_interval': .0.2, 0.8"):
        build(config)


def test_pairs_of_a_teacher_that_was_trained_anew_are_refused(
    teacher, pairs, tmp_path, monkeypatch
):
    """It has the name of the old one. Pairs of earlier versions do not say the parameters."""
    config, _ = pairs
    train.prepare(config, tmp_path, None)
    params = on_host(open_run(teacher).state.weights("ema"))
    other = jax.tree.map(lambda a: a + 1, params)
    monkeypatch.setattr(Teacher, "load_sampled", lambda *_: other)
    with pytest.raises(ValueError, match="pairs was made by other parameters .* or teacher has"):
        train.prepare(config, tmp_path, None)
    with pytest.raises(SystemExit, match="take another folder, or empty it"):
        write(config)
    assert build(config).space.shape == (8, 8, 1)  # a trained student is still sampled
    path = Path(config.pairs.directory) / latents.ORIGIN
    text = path.read_text()
    origin = json.loads(text)
    assert origin.pop(latents.PARAMETERS) == parameters_digest(params)
    path.write_text(json.dumps(origin))
    train.prepare(config, tmp_path, None)
    path.write_text(text)


def test_a_part_has_the_same_pairs_whoever_makes_it(pairs):
    """A process that makes the second part alone makes what the one process made."""
    config, dataset = pairs
    source = TeacherPairs(config)
    made, labels = source("train", range(PART, 2 * PART))
    np.testing.assert_array_equal(made, dataset.source[PART : 2 * PART]["image"])
    np.testing.assert_array_equal(labels, dataset.source[PART : 2 * PART]["label"])


def test_the_loss_is_flow_matching_between_the_two_of_a_pair(pairs):
    config, dataset = pairs
    task = build(config)
    assert task.frozen() == () and task.starts_from == config.teacher
    batch = jax.tree.map(jnp.asarray, dataset.source[:16])
    state, key = jax.jit(task.init)(jax.random.key(0)), jax.random.key(1)
    _, metrics = jax.jit(task.update)(state, batch, key)
    time_key, _ = jax.random.split(jax.random.split(key)[1])
    noise, x = batch["image"][:, 0], batch["image"][:, 1]
    t = jnp.maximum(jax.random.uniform(time_key, (16,)), 2.0**-24)[:, None, None, None]
    output = jax.jit(task.network.apply)(
        {"params": state.params}, (1 - t) * x + t * noise, t[:, 0, 0, 0], batch["label"]
    )
    np.testing.assert_allclose(metrics["loss"], jnp.mean((output - (noise - x)) ** 2), rtol=1e-5)


@pytest.mark.slow
def test_a_reflow_teaches_the_next_and_is_distilled_to_one_jump(teacher, pairs):
    config, _ = pairs
    first = teacher.parent / "first"
    train.run(config, first)
    again = student(first, folder="pairs_again")
    again.pairs.update(count=16)
    folder = write(again)
    origin = json.loads((folder / latents.ORIGIN).read_text())
    assert origin["teacher"] == str(first)
    assert origin["sampling"]["guidance_scale"] == 1.0  # a student's own
    distilled = student(first, "DistilledReflow", "pairs_again")
    distilled.pairs.update(count=16)
    task = build(distilled)
    made = latents.load_latents("train", folder, preload_bytes=10**9).source[:]
    with Checkpoints(first / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 2
    params = open_run(first, weights="params").variables["params"]
    state = task.optimization.first_state(params)
    _, metrics = jax.jit(task.update)(state, jax.tree.map(jnp.asarray, made), jax.random.key(0))
    z, x = made["image"][:, 0], made["image"][:, 1]
    apply = jax.jit(task.network.apply)
    jump = z - apply({"params": params}, z, jnp.ones(16), made["label"])
    np.testing.assert_allclose(metrics["loss"], jnp.mean((jump - x) ** 2), rtol=1e-5)


def test_pairs_that_do_not_fit_are_refused_before_any_compute(teacher, pairs):
    config, _ = pairs
    changed = config.copy_and_resolve_references()
    changed.pairs.sampling.guidance_scale = 2.0
    with pytest.raises(ValueError, match=r"'guidance_scale': 1.25.*not of .*'guidance_scale': 2.0"):
        build(changed)
    origin = teacher.parent / "pairs" / latents.ORIGIN
    right = origin.read_text()
    for field, value in dict(
        teacher="runs/other", shape=[4, 4, 1], process={"name": "EDM"}, count=5
    ).items():
        origin.write_text(json.dumps(json.loads(right) | {field: value}))
        with pytest.raises(ValueError, match=f"pairs was made of {{'{field}': .*take another"):
            build(config)
    origin.write_text(right)
    missing = student(teacher, folder="nowhere")
    with pytest.raises(FileNotFoundError, match="experiments.encode with this config"):
        train.prepare(missing, teacher.parent / "run", None)
    with pytest.raises(ValueError, match="it holds other files: take an empty folder"):
        latents.write_origin(teacher, {})
    without = student(teacher)
    without.pairs = {}
    with pytest.raises(ValueError, match="Reflow learns from a teacher's pairs: set config.pairs"):
        build(without)
    wrong = student(teacher)
    wrong.method = dict(name="DiscreteConsistency")
    with pytest.raises(ValueError, match="DiscreteConsistency learns from data: leave out"):
        build(wrong)
