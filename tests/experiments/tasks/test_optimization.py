"""Optimization of one network: weights by name, schedule-free averages, and metrics."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.configuration.runs import build
from genjax.data import Batches, load_dataset
from genjax.training.sampling import sample
from tests.experiments.small_digits import small_config

POWER = dict(
    narrow=dict(name="PowerFunction", width=0.05), wide=dict(name="PowerFunction", width=0.1)
)


@pytest.mark.parametrize(
    ("weights", "averages", "words"),
    [
        ("emma", {}, "is 'emma'; there are params, ema, and"),
        ("posthoc_0.12", {}, "if config.averages has a PowerFunction"),
        ("posthoc_0.5", POWER, "at most 1/√12 ≈ 0.2887; got 0.5"),
        (
            "posthoc_wide",
            POWER,
            "config.sampling.weights .* is 'posthoc_wide': could not convert.*'wide'",
        ),
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
    config.optimizer.update(name="schedule_free_adamw", schedule="constant", warmup=2.0)
    with pytest.raises(
        ValueError, match="averages by itself: set config.sampling.weights to 'params'"
    ):
        build(config)
    config.sampling.update(weights="params", num_steps=2)
    config.averages.ema.steps = 1e-3  # the newest alone
    task = build(config)
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    for batch in itertools.islice(Batches(load_dataset("digits"), 64, 0).iterate(), 4):
        state, _ = update(state, batch, jax.random.key(1))
    of = lambda state: sample(task, state, np.arange(10), config.sampling).astype(int)
    ordinary = state.replace(params=state.averages["ema"], optimizer_state=())
    assert np.abs(of(state) - of(ordinary)).max() <= 1  # x is found from y and z up to float32
    assert np.abs(of(state) - of(state.replace(optimizer_state=()))).max() > 1


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_metrics_say_what_moved(accumulation_steps):
    task = build(small_config(accumulation_steps=accumulation_steps))
    state = jax.jit(task.init)(jax.random.key(0)).replace(step=jnp.int32(50))
    batch = Batches(load_dataset("digits"), 64, 0)[0]
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    norm = lambda tree: np.sqrt(
        sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(tree))
    )
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    for part in state.params:
        np.testing.assert_allclose(
            metrics[f"norm/parameter/{part}"], norm(after.params[part]), rtol=1e-5
        )
        np.testing.assert_allclose(
            metrics[f"norm/update/{part}"], norm(moved[part]), rtol=1e-3, atol=1e-6
        )
    np.testing.assert_allclose(metrics["norm/update/total"], norm(moved), rtol=1e-3)
    # clipping comes after the gradient's norm is taken: Adam's first moment holds the clipped
    # gradient
    clipped = norm(optax.tree.get(after.optimizer_state, "mu")) / 0.1
    np.testing.assert_allclose(clipped, min(1.0, metrics["norm/gradient/total"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            "digits_gan",
            "config.accumulation_steps must be 1 for a GAN, whose networks see whole batches",
        ),
        (
            "emoji_autoencoder",
            "config.accumulation_steps must be 1 for an autoencoder, whose quantizer sees whole "
            "batches",
        ),
    ],
)
def test_networks_that_see_whole_batches_are_not_given_parts(config, words):
    config = importlib.import_module(f"configs.{config}").get_config()
    config.accumulation_steps = 2
    with pytest.raises(ValueError, match=words):
        build(config)
