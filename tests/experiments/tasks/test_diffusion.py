"""The algebra is general: the same task trains and samples under other processes, targets and times."""

import itertools

import jax
import numpy as np
import optax
import pytest
from experiments.launch.opening import build

from configs import digits_algebra
from configs.digits_flow import get_config
from experiments.launch.sampling import add_posthoc, power_averages, sample_images
from genjax.data import Batches, load_dataset, to_float
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import Snapshots, abstract_state
from genjax.training.loop import compile_update

STEPS = 150


def small_config(**changes):
    config = get_config()
    config.unlock()
    config.num_steps, config.averages.ema.steps = STEPS, 34.3  # a decay of 0.98
    config.model.update(width=32, depth=1, num_heads=2, unroll=1)
    config.optimizer.update(learning_rate=3e-3, warmup=20)
    config.update(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "target", "times"),
    [
        (
            dict(name="RectifiedFlow"),
            dict(name="clean"),
            dict(name="uniform", shift=1.0, variates="independent"),
        ),
        (
            dict(name="RectifiedFlow", domain=(0.0, 0.9)),
            dict(name="noise"),
            dict(name="uniform", shift=2.0, variates="stratified"),
        ),
        (
            dict(name="VariancePreservingCosine"),
            dict(name="velocity"),
            dict(name="logit_normal", shift=1.0, variates="independent"),
        ),
        (
            dict(name="VarianceExploding"),
            dict(name="clean"),
            dict(name="uniform", shift=1.0, variates="independent"),
        ),
        (
            dict(name="VariancePreservingLinear"),
            dict(name="v"),
            dict(name="cosmap", shift=1.0, variates="stratified"),
        ),
        (
            dict(name="VarianceExploding", sigma_max=10.0),
            dict(name="noise"),
            dict(name="uniform", shift=1.0, variates="independent"),
        ),
    ],
)
def test_processes_targets_and_times_are_interchangeable(process, target, times):
    weighting = dict(name="min_snr", gamma=4.0) if target["name"] == "v" else dict(name="uniform")
    config = small_config(process=process, target=target, times=times, weighting=weighting)
    task, mesh, dataset = (
        build(config),
        make_mesh(dict(config.mesh), config.batch_size),
        load_dataset("digits"),
    )
    update = compile_update(task, abstract_state(task, jax.random.key(0), mesh), mesh)
    state, losses = jax.jit(task.init)(jax.random.key(0)), []
    for batch in itertools.islice(Batches(dataset, config.batch_size, 0).iterate(), STEPS):
        state, metrics = update(state, place_batch(batch, mesh), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    images = to_float(sample_images(task, state, np.arange(100) % 10, config.sampling))
    # After so few steps samples are blurred, but their mean is already that of digits: light in the middle,
    # dark at the sides (columns 0 and 7 of the data have mean −.99).
    columns = images.mean((0, 1, 3))
    assert columns[[0, 7]].max() < -0.6 and columns[[3, 4]].min() > -0.3


def test_one_compilation_for_all_scales_seeds_and_grids(monkeypatch):
    config = small_config()
    task, traces = build(config), []
    state = jax.jit(task.init)(jax.random.key(0))
    apply = type(task.network).apply
    monkeypatch.setattr(type(task.network), "apply", lambda *a, **k: (traces.append(1), apply(*a, **k))[1])
    for changes in (
        dict(guidance_scale=1.0),
        dict(guidance_scale=7.5),
        dict(seed=3),
        dict(grid=dict(name="uniform_grid", shift=2.0)),
    ):
        sampling = small_config().sampling
        sampling.update(num_steps=3, **changes)
        sample_images(task, state, np.arange(10), sampling)
    assert len(traces) == 1  # the network is traced once, in the scan's body


def test_an_argument_that_a_function_does_not_take_is_named():
    with pytest.raises(
        ValueError, match="config.times has deviation, which uniform does not take; it takes process, u"
    ):
        build(small_config(times=dict(name="uniform", deviation=2.0, shift=1.0, variates="independent")))
    with pytest.raises(ValueError, match="noise is singular at t = 1 of RectifiedFlow: alpha = 0"):
        build(small_config(target=dict(name="noise")))
    with pytest.raises(ValueError, match="config.process has beta, which RectifiedFlow does not take"):
        build(small_config(process=dict(name="RectifiedFlow", beta=2.0)))


POWER = dict(narrow=dict(name="PowerFunction", width=0.05), wide=dict(name="PowerFunction", width=0.1))


@pytest.fixture(scope="module")
def power_run(tmp_path_factory):
    """A task with two power-function averages after a few steps, its state, and snapshots of both."""
    task = build(small_config(averages=POWER))  # besides the default
    snapshots, update = Snapshots(tmp_path_factory.mktemp("ema")), jax.jit(task.update)
    state = jax.jit(task.init)(jax.random.key(0))
    for batch in itertools.islice(Batches(load_dataset("digits"), 64, 0).iterate(), 6):
        state, _ = update(state, batch, jax.random.key(1))
        snapshots.save(int(state.step), power_averages(task, state))
    return task, state, snapshots


def test_weights_are_chosen_by_name(power_run):
    task, state, snapshots = power_run
    state = add_posthoc(task, state, "posthoc_0.12", snapshots)
    sampling = small_config().sampling

    def sample(state, weights):
        sampling.update(num_steps=2, weights=weights)
        return sample_images(task, state, np.arange(10), sampling)

    assert set(state.averages) == {"ema", "narrow", "wide", "posthoc_0.12"}
    for name, average in state.averages.items():
        np.testing.assert_array_equal(sample(state, name), sample(state.replace(params=average), "params"))
    leaves = [np.asarray(a["head"]["kernel"]) for a in (state.params, *state.averages.values())]
    assert len({leaf.tobytes() for leaf in leaves}) == 5  # all different


def test_the_averages_of_a_task_are_those_of_its_config(power_run):
    task, state, snapshots = power_run
    # 6 of 6 steps are stored: any width is given exactly, to the float32 of the files
    found = add_posthoc(task, state, "posthoc_0.1", snapshots).averages["posthoc_0.1"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state.averages["wide"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "averages", "words"),
    [
        ("emma", {}, "weights is 'emma'; there are params, ema, and"),
        ("posthoc_0.12", {}, "if config.averages has a PowerFunction"),
        ("posthoc_0.5", POWER, "at most 1/√12 ≈ 0.2887; got 0.5"),
        ("posthoc_wide", POWER, "could not convert.*'wide'"),
    ],
)
def test_weights_that_are_not_there(weights, averages, words):
    config = small_config()
    config.averages.update(averages)
    config.sampling.weights = weights
    with pytest.raises(ValueError, match=words):
        build(config)


def test_a_schedule_free_optimizer_is_sampled_from_its_own_average():
    config = small_config()
    config.optimizer.update(name="schedule_free_adamw", schedule="constant", warmup=2)
    with pytest.raises(ValueError, match="averages by itself: set config.sampling.weights to 'params'"):
        build(config)
    config.sampling.update(weights="params", num_steps=2)
    config.averages.ema.steps = 1e-3  # the newest alone
    task = build(config)
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    for batch in itertools.islice(Batches(load_dataset("digits"), 64, 0).iterate(), 4):
        state, _ = update(state, batch, jax.random.key(1))
    sample = lambda state: sample_images(task, state, np.arange(10), config.sampling)
    ordinary = state.replace(params=state.averages["ema"], optimizer_state=())
    difference = sample(state).astype(int) - sample(ordinary)
    assert np.abs(difference).max() <= 1  # x is found from y and z up to float32
    assert np.abs(sample(state).astype(int) - sample(state.replace(optimizer_state=()))).max() > 1


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_metrics_say_what_moved_and_at_which_times_the_loss_is(accumulation_steps):
    config = small_config(accumulation_steps=accumulation_steps)
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0)).replace(step=jax.numpy.int32(50))
    batch = Batches(load_dataset("digits"), 64, 0)[0]
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    bins = [metrics[f"loss/t_{i / 8:.3g}_{(i + 1) / 8:.3g}"] for i in range(8)]
    total, count = np.sum([(b.total, b.count) for b in bins], axis=0)
    np.testing.assert_allclose(total / count, metrics["loss"], rtol=1e-5)
    assert count == 64 / accumulation_steps  # means over microbatches, whose ratio is the whole batch's
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(tree)))
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    for part in state.params:
        np.testing.assert_allclose(metrics[f"norm/parameter/{part}"], norm(after.params[part]), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"norm/update/{part}"], norm(moved[part]), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics["norm/update/total"], norm(moved), rtol=1e-3)
    # clipping comes after the gradient's norm is taken: Adam's first moment holds the clipped gradient
    clipped = norm(optax.tree.get(after.optimizer_state, "mu")) / 0.1
    np.testing.assert_allclose(clipped, min(1.0, metrics["norm/gradient/total"]), rtol=1e-4)


@pytest.mark.parametrize("process", ["rectified_flow", "variance_preserving", "variance_exploding", "edm"])
def test_every_choice_of_the_algebra_can_be_trained_and_sampled(process):
    for target in ("clean", "noise", "v", "velocity", "edm"):
        task = build(digits_algebra.get_config(f"{process},{target}"))
        assert task.target.func.__name__ == target
