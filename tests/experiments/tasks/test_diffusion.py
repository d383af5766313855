"""One task trains and samples under every process, target and law of times."""

import dataclasses
import itertools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_algebra, digits_distillation, digits_flow
from experiments.configuration.runs import build
from experiments.tasks import adapters
from experiments.tasks.diffusion import interval_of
from genjax.data import Batches, load_dataset, to_float
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import abstract_state
from genjax.training.loop import compile_update
from genjax.training.sampling import sample
from tests.experiments.small_digits import MLP, small_config


@pytest.mark.parametrize("given", [0.5, (0.2,), (0.1, 0.2, 0.3), (0.8, 0.2)])
def test_an_interval_of_guidance_is_two_times(given):
    assert interval_of(SimpleNamespace(guidance_interval=[0.2, 0.8])) == (0.2, 0.8)
    assert interval_of(SimpleNamespace()) is None
    with pytest.raises(ValueError, match="guidance_interval is .*; it must be two times, lower"):
        interval_of(SimpleNamespace(guidance_interval=given))


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
    task, mesh = build(config), make_mesh(dict(config.mesh), config.batch_size)
    batches = Batches(load_dataset("digits"), config.batch_size, 0).iterate()
    update = compile_update(task, abstract_state(task, jax.random.key(0), mesh), mesh)
    state, losses = jax.jit(task.init)(jax.random.key(0)), []
    for batch in itertools.islice(batches, config.num_steps):
        state, metrics = update(state, place_batch(batch, mesh), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    images = to_float(sample(task, state, np.arange(100) % 10, config.sampling))
    # After so few steps samples are blurred, but their mean is already that of digits: light in the
    # middle, dark at the sides (columns 0 and 7 of the data have mean −.99).
    columns = images.mean((0, 1, 3))
    assert columns[[0, 7]].max() < -0.6 and columns[[3, 4]].min() > -0.3


def test_one_compilation_for_all_scales_seeds_and_grids(monkeypatch):
    task, traces = build(small_config()), []
    state = jax.jit(task.init)(jax.random.key(0))
    apply = type(task.network).apply
    monkeypatch.setattr(
        type(task.network), "apply", lambda *a, **k: (traces.append(1), apply(*a, **k))[1]
    )
    for changes in (
        dict(guidance_scale=1.0),
        dict(guidance_scale=7.5),
        dict(seed=3),
        dict(grid=dict(name="uniform_grid", shift=2.0)),
    ):
        sampling = small_config().sampling
        sampling.update(num_steps=3, **changes)
        sample(task, state, np.arange(10), sampling)
    assert len(traces) == 1  # the network is traced once, in the scan's body


@pytest.mark.parametrize(
    "config",
    [digits_flow.get_config(), digits_distillation.get_config("ConsistencyTraining")],
    ids=["diffusion", "distillation"],
)
def test_training_drops_features_and_sampling_does_not(config):
    unet = dict(name="SongUNet", width=8, multipliers=(1,), blocks=1, attention_levels=())
    config.model = dict(unet, dropout_rate=0.5)
    config.sampling.num_steps = 1
    task, seen = build(config), []
    state, key = jax.eval_shape(task.init, jax.random.key(0)), jax.random.key(0)
    image, label = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.uint8), jax.ShapeDtypeStruct((4,), int)

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append(context.module.deterministic)  # of the student and of the older one
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(task.update, state, {"image": image, "label": label}, key)
    assert seen and not any(seen)
    seen.clear()
    with nn.intercept_methods(record):
        inputs = task.sampling_inputs(config.sampling)
        jax.eval_shape(task.generate, state, key, label, label, *inputs)
    assert seen and all(seen)


def test_mirrors_noise_within_levels_and_dropout_are_drawn_anew_in_each_step():
    """17 levels are 1/8 apart, and noise reaches half as far."""
    task = dataclasses.replace(build(small_config()), flip=True, dequantize_levels=17)
    images = jnp.arange(64 * 4, dtype=jnp.uint8).reshape(64, 2, 2, 1)
    keys, zeros = jax.random.split(jax.random.key(0)), jnp.zeros((1000, 2, 2, 1))
    mirrored = np.array([task._mirrored({"image": images}, key)["image"] for key in keys])
    is_mirror = np.all(mirrored == images[:, :, ::-1], axis=(2, 3, 4))
    assert np.all(is_mirror | np.all(mirrored == images, axis=(2, 3, 4)))
    assert 16 < is_mirror[0].sum() < 48 and np.any(is_mirror[0] != is_mirror[1])
    noise = np.array([task._dequantized(zeros, key) for key in keys])
    assert np.any(noise[0] != noise[1]) and np.abs(noise).max() == pytest.approx(1 / 16, rel=0.01)
    of_dropout = [task._dropout_rngs(key)["dropout"] for key in keys]
    assert of_dropout[0] != of_dropout[1]


@pytest.mark.parametrize(
    ("condition", "own"),
    [(dict(name="Classes", num_classes=5), 5), (dict(name="Unconditional"), 0)],
)
def test_adapters_of_a_network_with_other_classes_are_refused(condition, own, monkeypatch):
    """Label 5 would drop the class, and it is the network's sixth class."""
    monkeypatch.setattr(adapters, "_source", lambda folder: (MLP(num_classes=10), None))
    config = small_config(adapters=dict(source="run"))
    config.condition = condition
    with pytest.raises(ValueError, match=f"num_classes 10, and config.condition {own}: take data"):
        build(config)


def test_an_argument_that_a_function_does_not_take_is_named():
    times = dict(name="uniform", deviation=2.0, shift=1.0, variates="independent")
    message = "config.times.deviation is set, which uniform does not take; it takes no arguments"
    with pytest.raises(ValueError, match=message):
        build(small_config(times=times))
    with pytest.raises(ValueError, match="noise is singular at t = 1 of RectifiedFlow: alpha = 0"):
        build(small_config(target=dict(name="noise")))
    clean, adaptive = dict(target=dict(name="clean")), dict(sampler=dict(name="adaptive"))
    build(small_config(**clean))
    build(small_config(sampling=adaptive))
    with pytest.raises(ValueError, match="clean is singular at t = 0 of RectifiedFlow: alpha = 1"):
        build(small_config(**clean, sampling=adaptive))
    message = "config.process.beta is set, which RectifiedFlow does not take; it takes domain"
    with pytest.raises(ValueError, match=message):
        build(small_config(process=dict(name="RectifiedFlow", beta=2.0)))


def test_a_network_without_channels_for_a_variance_is_refused():
    with pytest.raises(ValueError, match="has no out_channels: take another network"):
        build(small_config(loss=dict(name="hybrid_loss")))
    config = digits_flow.get_config()
    config.loss.name = "hybrid_loss"
    with pytest.raises(ValueError, match="config.model.out_channels is None and has to be 2"):
        build(config)


@pytest.mark.parametrize(
    "process", ["rectified_flow", "variance_preserving", "variance_exploding", "edm"]
)
def test_every_choice_of_the_algebra_can_be_trained_and_sampled(process):
    for target in ("clean", "noise", "v", "velocity", "edm"):
        task = build(digits_algebra.get_config(f"{process},{target}"))
        assert task.objective.target.func.__name__ == target


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_metrics_say_at_which_times_the_loss_is(accumulation_steps):
    config = small_config(accumulation_steps=accumulation_steps)
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = Batches(load_dataset("digits"), 64, 0)[0]
    _, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    bins = [metrics[f"loss/t_{i / 8:.3g}_{(i + 1) / 8:.3g}"] for i in range(8)]
    total, count = np.sum([(b.total, b.count) for b in bins], axis=0)
    np.testing.assert_allclose(total / count, metrics["loss"], rtol=1e-5)
    assert (
        count == 64 / accumulation_steps
    )  # means over microbatches, whose ratio is the whole batch's


class Dropping(nn.Module):
    """Draws dropout in samples too."""

    @nn.compact
    def __call__(self, x_t, t, condition):
        return nn.Dropout(0.1, deterministic=False)(nn.Dense(1)(x_t))


class Normalizing(nn.Module):
    """Keeps statistics outside its parameters."""

    @nn.compact
    def __call__(self, x_t, t, condition):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(1)(x_t))


@pytest.mark.parametrize(
    ("network", "reason"), [("Dropping", "dropout"), ("Normalizing", "batch_stats")]
)
def test_a_network_that_cannot_be_sampled_is_refused_before_training(network, reason):
    config = digits_flow.get_config()
    config.model = dict(name=f"{__name__}.{network}")
    with pytest.raises(ValueError, match=f"names {network}, which cannot be .*{reason}"):
        build(config)
