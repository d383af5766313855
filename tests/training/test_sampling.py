"""Samples of a trained task: by which weights, and of averages reconstructed after training."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration.runs import build
from genjax.data import Batches, load_dataset
from genjax.training import Snapshots
from genjax.training.sampling import add_posthoc, one_ahead, power_averages, sample
from tests.experiments.small_digits import small_config

POWER = dict(
    narrow=dict(name="PowerFunction", width=0.05), wide=dict(name="PowerFunction", width=0.1)
)


@pytest.fixture(scope="module")
def power_run(tmp_path_factory):
    """Return a task with two power-function averages, its state after some steps, and snapshots."""
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

    def by(weights, state=state):
        sampling.update(num_steps=2, weights=weights)
        return sample(task, state, np.arange(10), sampling)

    assert set(state.averages) == {"ema", "narrow", "wide", "posthoc_0.12"}
    for name, average in state.averages.items():
        np.testing.assert_array_equal(by(name), by("params", state.replace(params=average)))
    leaves = [np.asarray(a["head"]["kernel"]) for a in (state.params, *state.averages.values())]
    assert len({leaf.tobytes() for leaf in leaves}) == 5  # all different


def test_the_averages_of_a_task_are_those_of_its_config(power_run):
    task, state, snapshots = power_run
    # 6 of 6 steps are stored: any width is given exactly, to the float32 of the files
    found = add_posthoc(task, state, "posthoc_0.1", snapshots).averages["posthoc_0.1"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state.averages["wide"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


class Numbered:
    """A task whose samples are 100 times their label plus their index, and the negative of it."""

    space = SimpleNamespace(to_data=lambda samples: {"sound": samples, "video": -samples})

    def sampling_inputs(self, sampling):
        return (sampling.offset,)

    def generate(self, state, key, labels, indices, offset, *, weights, trajectory):
        samples = 100 * labels + indices + offset
        return jnp.stack([samples - 1, samples]) if trajectory else samples


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_does_not_change_the_samples(batch_size, trajectory):
    """Seven samples, the last batch of which is filled up and cut again."""
    labels = np.array([4, 0, 2, 2, 1, 0, 3])
    sampling = SimpleNamespace(seed=0, weights="params", batch_size=batch_size, offset=20)
    made = sample(Numbered(), jnp.zeros(()), labels, sampling, trajectory=trajectory)
    expected = 100 * labels + np.arange(7) + 20
    expected = np.stack([expected - 1, expected]) if trajectory else expected
    np.testing.assert_array_equal(made["sound"], expected)
    np.testing.assert_array_equal(made["video"], -expected)


def test_an_item_is_given_once_the_next_has_been_made():
    made = []
    items = (made.append(item) or item for item in range(3))
    assert [(item, len(made)) for item in one_ahead(items)] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_ahead([])) == []
