"""Few-step students: every method trains and samples, with and without a teacher."""

import functools
import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation, digits_flow
from experiments import train
from experiments.configuration import kinds
from experiments.configuration.runs import build, open_run
from experiments.launch import fine_tuning
from experiments.launch.fine_tuning import open_source, transfer
from experiments.tasks.adapters import Adapters
from experiments.tasks.distillation import Distillation
from experiments.tasks.methods import Student
from experiments.tasks.methods import consistency as consistency_methods
from experiments.tasks.methods import flow_maps as flow_map_methods
from experiments.tasks.teachers import Teacher
from genjax import diffusion
from genjax.diffusion import targets, times
from genjax.distillation import flow_maps, pairs, progressive
from tests.experiments.autoencoder_run import small_config
from tests.experiments.random_runs import random_run, random_state

NETWORK = dict(patch_size=4, width=16, depth=1, num_heads=2, unroll=1)
PLAIN = dict(name="tests.experiments.small_jumps.Jumps")
TIME_SCALE = 1000.0  # the teacher's


def small(config, network=NETWORK, **changes):
    if "name" in network:
        config.model = dict(network)
    else:
        config.model.update(network)
    config.num_steps, config.batch_size = 2, 16
    config.checkpoint.every = 2
    config.evaluation.measures = {}
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


def student(method, teacher=None, network=NETWORK, **changes):
    config = small(digits_distillation.get_config(method), network, **changes)
    config.teacher = teacher
    if teacher:
        config.model.time_scale = TIME_SCALE
    elif method in ("Consistency", "Semigroup"):
        config.method.guidance_scale = 1.0  # the teacher's
    if method.endswith("ProgressiveDistillation"):
        config.method.stages = 2
    return config.lock()  # as the program gets it


def retold(run, folder, config):
    """Copy a run as one of another config."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "config.json").read_text())
    record["config"] = json.loads(config.to_json_best_effort())
    (folder / "config.json").write_text(json.dumps(record))
    return str(folder)


@functools.cache
def batch():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(16) % 10}


@pytest.mark.slow
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
        ("ConsistencyTraining", False),
        ("ImprovedConsistencyTraining", False),
        ("ConsistencyDistillation", True),
        ("LatentConsistency", True),
        ("TrajectoryConsistency", True),
        ("ConsistencyTrajectory", True),
        ("ContinuousDistillation", True),
        ("ProgressiveDistillation", True),
        ("GuidedProgressiveDistillation", True),
    ],
)
def test_a_step_of_every_method_moves_the_student_and_not_the_teacher(
    method, taught, plain_teacher
):
    config = student(method, plain_teacher if taught else None, PLAIN)
    task = build(config)
    state, frozen = random_state(task), task.frozen()
    before = jax.tree.map(np.copy, frozen)
    after, metrics = jax.jit(task.update)(state, batch(), jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), state.params, after.params)
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
    sample, theirs = (
        jax.jit(functools.partial(task.generate, state, jax.random.key(0), labels, indices, **of))
        for task, state, of in ((task, state, {}), (run.task, run.state, {"weights": "ema"}))
    )
    one = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(sample(1.0, one), theirs(1.0, one), atol=1e-5)
    four = np.linspace(1.0, 0.0, 5, dtype=np.float32)
    told = lambda x, t, s: task.network.apply(found.networks["network"], x, t, labels, end_time=s)

    @jax.jit
    def by_hand():
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(indices)
        x = task.process.prior(keys, (8, 8, 1))
        jump = flow_maps.flow_map(told, task.process, task.objective.target)
        for t, s in itertools.pairwise(four):
            x = jump(x, jnp.full(6, t), jnp.full(6, s))
        return x

    np.testing.assert_allclose(sample(1.0, four), by_hand(), atol=1e-5)


def test_a_student_told_the_scale_is_sampled_at_it(teacher):
    config = student("GuidanceDistillation", teacher)
    config.sampling.guidance_scale = 3.0
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), state.params
    )
    sample = jax.jit(
        lambda scale: task.generate(
            state.replace(params=params),
            jax.random.key(0),
            jnp.arange(3),
            jnp.arange(3),
            scale,
            jnp.array([1.0, 0.0]),
        )
    )
    assert np.abs(np.asarray(sample(1.0)) - sample(3.0)).max() > 1e-3


def test_a_student_of_another_process_starts_with_its_teachers_answers(teacher):
    """TrigFlow's x_t/(cos + s·sin) is the rectified flow's at s·sin/(cos + s·sin)."""
    config = student("ContinuousDistillation", teacher, model=dict(time_scale=1000.0))
    task, run = build(config), open_run(teacher)
    params = run.variables["params"]
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(task.init, jax.random.key(0)).params
    )
    x_t = np.asarray(jax.random.normal(jax.random.key(1), (3, 8, 8, 1)))
    t = np.array([0.05, 0.8, np.pi / 2], np.float32)
    labels, s = np.arange(3), task.process.preconditioning.data_deviation
    total = np.cos(t) + s * np.sin(t)
    scaled, time = x_t / total[:, None, None, None], s * np.sin(t) / total
    velocity = jax.jit(run.network.apply)({"params": params}, scaled, time, labels)
    clean = scaled - time[:, None, None, None] * velocity
    theirs = jax.jit(task.teacher.denoiser(params, task.process))(x_t, t, labels)
    np.testing.assert_allclose(theirs.clean, clean, atol=1e-5)
    ours = jax.jit(task.denoiser(params))(x_t, t, labels)
    np.testing.assert_allclose(ours.clean, clean, atol=1e-5)
    np.testing.assert_allclose(ours.noise, theirs.noise, atol=1e-5)


@pytest.mark.slow
def test_a_stage_of_halving_learns_from_what_the_student_was_at_its_start(tmp_path):
    """Four steps in two stages; the loss of the second by hand, of three places instead of six.

    The target is x̂ here, the velocity in the other tests.
    """
    clean = dict(target=dict(name="clean"))
    teacher = random_run(tmp_path / "clean", small(digits_flow.get_config(), PLAIN, **clean))
    config = student("ProgressiveDistillation", teacher, PLAIN, num_steps=4, **clean)
    with config.unlocked():
        config.method.update(num_steps=6, guidance_scale=1.0)
    config.conditioning_dropout = 0.0
    task = build(config)
    state = task.optimization.first_state(task.teacher.load())
    update = jax.jit(task.update)
    states = [state]
    for step in range(4):
        key = jax.random.key(step)
        state, metrics = update(state, batch(), key, *task.frozen())
        states.append(state)
        if step == 2:
            found = metrics["loss"]
    held = [each.averages["previous_stage"] for each in states]
    for number, source in enumerate((0, 0, 2, 2, 4)):
        jax.tree.map(np.testing.assert_array_equal, held[number], states[source].params)
    before = states[2]
    denoiser = task.denoiser(before.averages["previous_stage"])
    by_hand = jax.jit(
        lambda batch: progressive.progressive_distillation_loss(
            jax.random.split(jax.random.key(2))[1],
            functools.partial(task.network.apply, {"params": before.params}),
            denoiser,
            task.space.encode(batch["image"]),
            batch["label"],
            process=task.process,
            target=targets.clean,
            num_steps=3,
        )[0].mean()
    )
    np.testing.assert_allclose(found, by_hand(batch()), rtol=1e-5)


@pytest.mark.slow
def test_guided_halving_first_learns_the_teacher_at_every_scale(plain_teacher):
    """Its first stage is `GuidanceDistillation`; later the student it was answers at one scale."""
    config = student("GuidedProgressiveDistillation", plain_teacher, PLAIN, num_steps=4)
    with config.unlocked():
        config.method.num_steps = 2
    task = build(config)
    same = build(student("GuidanceDistillation", plain_teacher, PLAIN, num_steps=4))
    params = random_state(task).params
    state, key = task.optimization.first_state(params), jax.random.key(1)
    frozen = task.frozen()
    _, metrics = jax.jit(task.update)(state, batch(), key, *frozen)
    _, others = jax.jit(same.update)(same.optimization.first_state(params), batch(), key, *frozen)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-6)


def sines(x, t, _, end_time=0.0):
    return jnp.sin(x) * (1 + t)[:, None]


def losses_and_times(method, progress, process, times, **changes):
    """Return what a method says of a student without parameters, after a share of its training."""
    x, labels = jax.random.normal(jax.random.key(1), (4, 3)), jnp.zeros(4, int)
    fields = dict(
        network=sines,
        averaged=None,
        condition=labels,
        null=1,
        condition_with_dropout=labels,
        dropped=labels > 0,
        process=process,
        target=targets.velocity,
        times=times,
        teacher=None,
        progress=jnp.float32(progress),
    )
    return method(jax.random.key(0), Student(**fields | changes), x)


def loss_of(*args):
    return losses_and_times(*args)[0]


def test_targets_are_those_of_the_averaged_student():
    """Its data are 0, and the student's 1. Its average velocities are 2, and the student's 0."""
    of = lambda method, **networks: jax.jit(
        lambda: losses_and_times(method, 0.0, diffusion.RectifiedFlow(), times.uniform, **networks)
    )()
    loss, t = of(
        consistency_methods.DiscreteConsistency(),
        network=lambda x, t, _: (x - 1) / t[:, None],
        averaged=lambda x, t, _: x / t[:, None],
    )
    to_the_clean_end = t < 1.5 / 18  # whose targets are the data themselves
    assert to_the_clean_end.sum() < 4
    np.testing.assert_allclose(loss[~to_the_clean_end], 1, rtol=1e-5)
    loss, _ = of(
        flow_map_methods.Shortcut(share=0.5),
        network=lambda x, *_, **__: 0 * x,
        averaged=lambda x, *_, **__: 0 * x + 2,
    )
    np.testing.assert_allclose(loss[:2], 4)


def test_a_latent_consistency_student_knows_the_scale_of_its_teachers_guidance():
    """The data are 1 with the condition and 0 without it, so those of guidance are the scale.

    The target of the last of two steps is the teacher's, and of the first the averaged student's.
    """
    flow = diffusion.RectifiedFlow()
    velocity = lambda x, t, data: (x - data[:, None]) / t[:, None]
    network = lambda x, t, _, guidance: velocity(x, t, guidance)
    teacher = diffusion.predict(
        lambda x, t, labels: velocity(x, t, labels == 0), flow, targets.velocity
    )
    method = consistency_methods.LatentConsistency(steps=2)
    networks = dict(network=network, averaged=network, teacher=teacher)
    loss, t = jax.jit(lambda: losses_and_times(method, 0.0, flow, times.uniform, **networks))()
    assert set(t.tolist()) == {0.5, 1.0}
    np.testing.assert_allclose(loss, 0, atol=1e-5)  # a scale that is off by 1 costs 1.7


def test_a_consistency_loss_is_as_large_for_shorter_steps():
    """Jumps from two points differ by as much less as these are nearer; the weight is 1/(t − r)."""
    method, flow = consistency_methods.Consistency(stages=8), diffusion.RectifiedFlow()
    losses = [loss_of(method, stage / 8, flow, times.uniform).mean() for stage in (6, 7)]
    np.testing.assert_allclose(*losses, rtol=0.05)  # steps of finite length


def test_a_warm_up_of_no_length_is_over_at_the_first_step():
    """The loss at the start is that of the other warm-up at its end."""

    def loss(warmup, progress):
        method = consistency_methods.ContinuousConsistency(warmup=warmup)
        return loss_of(method, progress, diffusion.TrigFlow(), times.log_normal_sigma)

    np.testing.assert_array_equal(loss(0.0, 0.0), loss(0.25, 0.25))
    assert jnp.all(jnp.abs(loss(0.25, 0.0) - loss(0.0, 0.0)) > 1e-5)


def test_a_consistency_students_grid_has_the_quantiles_of_its_law():
    """iCT's grid of 40 of 1,280 steps: Karras et al.'s grid, then the start of the domain."""
    student = SimpleNamespace(times=times.karras, process=diffusion.EDM())
    found = consistency_methods.quantiles(student, jnp.asarray(40), 1280)
    expected = diffusion.karras_grid(diffusion.EDM(), 41)[:-1]
    np.testing.assert_allclose(found[:41], expected, rtol=2e-5)
    np.testing.assert_allclose(found[41:], 0.002, rtol=1e-6)
    weights = pairs.log_normal_weights(found)
    assert jnp.all(weights[40:] == 0) and jnp.all(weights[:40] > 0)
    flow = SimpleNamespace(times=times.uniform, process=diffusion.RectifiedFlow())
    grid = diffusion.uniform_grid(flow.process, 5)
    np.testing.assert_allclose(consistency_methods.quantiles(flow, 5), grid, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("MeanFlow", dict(process=dict(name="TrigFlow")), "process is TrigFlow, but MeanFlow is"),
        (
            "Shortcut",
            dict(process=dict(name="Shifted", base=dict(name="RectifiedFlow"), shift=3.0)),
            "config.process is Shifted, but Shortcut is for RectifiedFlow alone: take",
        ),
        (
            "MeanFlow",
            dict(process=dict(preconditioning=dict(name="UnitVariance", data_deviation=0.5))),
            "config.process.preconditioning is UnitVariance, but MeanFlow feeds its network x_t",
        ),
        ("ImprovedMeanFlow", dict(target=dict(name="v")), "config.target is v, but a network of"),
        ("GuidedMeanFlow", dict(target=dict(name="clean")), "GuidedMeanFlow predicts velocity"),
        (
            "ContinuousConsistency",
            dict(process=dict(name="RectifiedFlow")),
            "config.process is RectifiedFlow, but ContinuousConsistency is for TrigFlow alone",
        ),
    ],
)
def test_a_method_of_one_process_and_target_refuses_others(method, changes, message):
    """The loss would train as if for its own, and the samples would be made by the config's."""
    config = digits_distillation.get_config(method)
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        build(config)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("MeanFlow", dict(loss=dict(direction_weight=1.0))),
        ("Shortcut", dict(loss=dict(importance_corrected=True))),
        ("Drift", dict(times=dict(variates="stratified"))),
        ("Drift", dict(times=dict(name="logit_normal"))),
        ("Consistency", dict(weighting=dict(name="min_snr"))),
        ("LADD", dict(weighting=dict(name="min_snr"))),
        ("DistilledReflow", dict(weighting=dict(name="min_snr"))),
        ("DistilledReflow", dict(times=dict(name="logit_normal"))),
        ("ProgressiveDistillation", dict(times=dict(name="logit_normal"))),
        ("Shortcut", dict(times=dict(name="logit_normal"))),
        ("Shortcut", dict(times=dict(shift=3.0))),
    ],
)
def test_a_field_that_a_method_does_not_read_is_refused(method, changes):
    config = digits_distillation.get_config(method)
    for field, value in changes.items():
        config[field] = dict(config[field]) | value
    with pytest.raises(ValueError, match=f"{field}.* is .*, but the loss of {method} does not"):
        build(config)


@pytest.mark.parametrize(
    "method",
    [
        "LatentConsistency",
        "TrajectoryConsistency",
        "GuidanceDistillation",
        "GuidedProgressiveDistillation",
        "Drift",
    ],
)
def test_a_method_that_drops_no_conditions_has_no_rate_of_it(method):
    config = digits_distillation.get_config(method)
    assert config.conditioning_dropout == 0
    config.conditioning_dropout = 0.1
    with pytest.raises(
        ValueError, match=f"conditioning_dropout is 0.1, but the loss of {method} does not read it"
    ):
        build(config)


def test_halving_skips_no_steps(plain_teacher, tmp_path):
    """Were the last step of a stage skipped, the next stage would learn from an older student."""
    config = student("ProgressiveDistillation", plain_teacher, PLAIN)
    config.max_skipped_steps = 10
    with pytest.raises(ValueError, match="max_skipped_steps is 10, but the last step of each sta"):
        train.prepare(config, tmp_path, None)


@pytest.mark.parametrize("method", ["ProgressiveDistillation", "GuidedProgressiveDistillation"])
def test_halving_refuses_a_grid_of_other_steps_than_it_learns(plain_teacher, method):
    """One step leads from noise to data on every grid. Two steps are elsewhere with a shift."""
    config = student(method, plain_teacher, PLAIN)
    with config.unlocked():
        config.method.stages = 6 if method == "GuidedProgressiveDistillation" else 5
        config.num_steps, config.sampling.grid.shift = 20, 3.0
    with pytest.raises(ValueError, match=r"the times \[1.   0.75 0.  \] for 2 steps, but the last"):
        build(config)
    with config.unlocked():
        config.method.stages += 1
    build(config)


@pytest.mark.parametrize("method", ["Consistency", "ContinuousDistillation", "Semigroup"])
def test_a_teachers_guidance_scale_without_a_teacher_is_refused(method):
    config = digits_distillation.get_config(method)
    config.teacher = None
    with pytest.raises(ValueError, match="guidance_scale is 1.25, the teacher's, but there is no"):
        build(config)


@pytest.mark.parametrize("method", ["LADD", "LatentConsistency", "TrajectoryConsistency"])
def test_a_method_that_reads_no_guidance_scale_has_none(method):
    with pytest.raises(ValueError, match="guidance_scale"):
        kinds.METHOD.bind(dict(name=method, guidance_scale=1.25), "method")


def test_halving_and_reflow_read_the_weighting():
    for method in ("ProgressiveDistillation", "GuidedProgressiveDistillation", "Reflow"):
        config = digits_distillation.get_config(method)
        config.weighting = dict(name="min_snr")
        config.teacher = None
        with pytest.raises(ValueError, match=f"{method} needs a teacher"):  # the next check
            build(config)


def test_what_does_not_fit_is_said_before_any_compute(teacher, tmp_path):
    with pytest.raises(ValueError, match="Lagrangian needs a teacher: set config.teacher"):
        build(student("Lagrangian"))
    with pytest.raises(ValueError, match="MeanFlow learns without a teacher; leave out"):
        build(student("MeanFlow", teacher))
    with pytest.raises(FileNotFoundError, match="nowhere, which has no run; train the teacher"):
        build(student("Lagrangian", f"{tmp_path}/nowhere"))
    narrow = small(digits_flow.get_config(), process=dict(name="RectifiedFlow", domain=[0.1, 0.9]))
    narrow = retold(teacher, tmp_path / "narrow", narrow)
    with pytest.raises(
        ValueError, match="narrow knows the log-SNRs -4.394 to 4.394, the student's"
    ):
        build(student("Lagrangian", narrow, process=dict(name="TrigFlow")))
    told = student("GuidanceDistillation", teacher)
    told = retold(teacher, tmp_path / "told", told)
    with pytest.raises(ValueError, match="told takes a guidance scale, which Lagrangian does not"):
        build(student("Lagrangian", told))
    with pytest.raises(ValueError, match="stages is 3; take 1 to config.num_steps=2"):
        config = student("ProgressiveDistillation", teacher)
        config.method.stages = 3
        build(config)
    with pytest.raises(ValueError, match="num_steps is 6, which cannot be halved 2 times"):
        kinds.METHOD.bind(dict(name="ProgressiveDistillation", num_steps=6, stages=3), "method")
    with pytest.raises(ValueError, match="a grid of first=10 and last=5 steps; take at least 1"):
        kinds.METHOD.bind(dict(name="ImprovedConsistencyTraining", last=5), "method")
    config = student("Lagrangian", teacher)
    config.data.name = "fashion_mnist"
    with pytest.raises(ValueError, match="has the data set digits, the student fashion_mnist"):
        build(config)
    config = student("Lagrangian", teacher)
    config.condition = dict(name="Unconditional")
    with pytest.raises(ValueError, match=r"condition Classes\(10\), the student Unconditional"):
        build(config)
    with pytest.raises(ValueError, match="has the target velocity, the student v; train a teacher"):
        build(student("Lagrangian", teacher, target=dict(name="v")))
    build(
        student(
            "ContinuousDistillation", teacher, target=dict(name="v"), model=dict(time_scale=1000.0)
        )
    )
    config = student("ContinuousDistillation", teacher)
    config.model.time_scale = 1.0
    with pytest.raises(ValueError, match="has the model.time_scale 1000.0, the student 1.0; train"):
        build(config)
    config = student("MeanFlow")
    config.sampling.guidance_scale = 2.0
    with pytest.raises(
        ValueError, match="guidance_scale is 2.0, but a student of MeanFlow has the"
    ):
        build(config)
    with config.unlocked():
        config.sampling.update(guidance_scale=1.0, guidance_interval=(0.2, 0.8))
    with pytest.raises(ValueError, match="Distillation guides at all times: leave it out"):
        build(config)


def test_a_teacher_of_another_folder_of_data_is_refused(teacher, tmp_path):
    """Unless both paths lead to one folder, or one of them leads nowhere."""
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cats")
    own = lambda folder: dict(data=dict(directory=str(tmp_path / folder)))
    of_cats = retold(teacher, tmp_path / "run", small(digits_flow.get_config(), **own("cats")))
    for same in ("cats", "link", "moved"):
        build(student("Lagrangian", of_cats, **own(same)))
    build(student("Lagrangian", of_cats))
    with pytest.raises(ValueError, match="folder of data .*/cats, the student .*/dogs; train a te"):
        build(student("Lagrangian", of_cats, **own("dogs")))


def test_a_teacher_in_other_latents_is_refused(tmp_path):
    """Those of another autoencoder, of its other weights, or standardized by another folder."""

    def record(name, config):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"config": config.to_dict()}))
        return str(tmp_path / name)

    autoencoder = small_config("kl")
    first, second = (record(name, autoencoder) for name in ("first", "second"))
    (tmp_path / "link").symlink_to(first)
    stored, others = record("stored", autoencoder), record("others", autoencoder)

    def latents(run=first, **changes):
        space = dict(name="Latents", run=run, weights="ema", directory=stored) | changes
        return dict(space=space, data=dict(image_shape=autoencoder.data.image_shape))

    of_first = record("run", small(digits_flow.get_config(), **latents()))
    for same in (latents(), latents(f"{tmp_path}/link"), latents(directory=None)):
        build(student("Lagrangian", of_first, **same))
    for other, words in (
        (latents(second), r"has the space Latents\(ema of .*/first\), the student .*/second\); tr"),
        (latents(weights="params"), r"has the space .*, the student Latents\(params of .*/first"),
        (latents(directory=others), "has the folder of latents .*/stored, the student .*/others"),
    ):
        with pytest.raises(ValueError, match=words):
            build(student("Lagrangian", of_first, **other))
    pixels = dict(space=dict(name="Pixels"), data=dict(image_shape=(8, 8, 2)))
    with pytest.raises(ValueError, match=r"has the space Latents\(.*\), the student Pixels"):
        build(student("Lagrangian", of_first, **pixels))


def test_a_student_that_started_from_another_run_resumes_without_the_flag(teacher, tmp_path):
    """--init_from then is absent, and the teacher does not stand in for it."""
    config = student("Lagrangian", teacher)
    retold(teacher, tmp_path / "run", config)
    record = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(record | {"init_from": "runs/other"}))
    train.prepare(config, tmp_path / "run", None)
    assert json.loads((tmp_path / "run/config.json").read_text())["init_from"] == "runs/other"


def test_weights_to_start_from_are_whole_on_the_host(teacher):
    """Several processes cannot fetch an array that is split over the devices of all."""
    assert {type(a) for a in jax.tree.leaves(open_source(teacher))} == {np.ndarray}


def test_adapters_start_from_adapters_and_all_else_from_the_adapted_network(tmp_path, monkeypatch):
    """Adapters of another scale change the network as they did: by scale · down · up."""
    random = np.random.default_rng(0)
    down, up = (random.standard_normal(shape, np.float32) for shape in ((4, 2), (2, 3)))
    whole, adapters = {"params": {"kernel": np.ones(2)}}, {"kernel": dict(down=down, up=up)}
    task = SimpleNamespace(adapters=Adapters("a", scale=2.0))
    task.networks = lambda state, weights: {"network": {"params": adapters}}
    run = SimpleNamespace(task=task, state=None, variables=whole)
    run.config = SimpleNamespace(sampling=SimpleNamespace(weights="ema"))
    monkeypatch.setattr(fine_tuning, "open_run", lambda folder: run)
    (tmp_path / "checkpoints").mkdir()
    assert open_source(tmp_path) == {"network": whole}
    for scale in (2.0, 0.25):
        own = Adapters("a", scale=scale)
        given = open_source(tmp_path, own)["network"]["params"]
        adapted = own.apply({"kernel": np.ones((4, 3), np.float32)}, given)["kernel"]
        np.testing.assert_allclose(adapted, 1 + 2 * down @ up, rtol=1e-5, atol=1e-6)


def test_a_student_of_adapters_starts_as_its_source(teacher):
    by_adapters = student("ConsistencyDistillation", teacher, adapters=dict(source=teacher))
    assert build(by_adapters).starts_from is None
    assert build(student("ConsistencyDistillation", teacher)).starts_from == teacher


def test_a_teacher_is_sampled_with_the_students_prompts():
    asked = []
    run = SimpleNamespace(
        sample=lambda **given: asked.append(given),
        config=SimpleNamespace(sampling=SimpleNamespace(num_steps=50)),
    )
    of_prompts = SimpleNamespace(
        teacher=SimpleNamespace(run=run), condition=SimpleNamespace(prompts=("a cat", "a dog"))
    )
    assert Distillation._sample_teacher(of_prompts, np.array([1, 0, 1]), 3) == (None, 50)
    assert asked == [dict(prompts=["a dog", "a cat", "a dog"], seed=3)]


def test_a_teacher_that_jumps_answers_with_its_velocity(monkeypatch):
    """A jump that ends where it starts stands for the velocity."""
    apply = lambda variables, x, t, condition, end_time: end_time
    run = SimpleNamespace(network=SimpleNamespace(apply=apply, takes_end_time=True))
    monkeypatch.setattr(Teacher, "run", property(lambda _: run))
    assert Teacher("runs/student").network(None)(None, 0.5, None) == 0.5


@pytest.mark.slow
def test_a_run_of_a_student_goes_from_its_teacher_and_is_sampled_in_any_number_of_jumps(
    plain_teacher, tmp_path
):
    config = student("Semigroup", plain_teacher, PLAIN)
    train.run(config, tmp_path / "run")
    run = open_run(tmp_path / "run", num_steps=3)
    images = run.sample(labels=[1, 2], seed=0)
    assert images.shape == (2, 8, 8, 1)
    assert run.task.num_evaluations(run.config.sampling) == 3
