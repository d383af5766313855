"""The configs of video: a step and samples of each at toy size."""

import jax
import numpy as np
import pytest

from configs import moving_digits_video
from experiments.configuration.runs import build
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import training_batches
from experiments.launch import encoding
from genjax.data import to_float
from genjax.devices import make_mesh
from genjax.training.sampling import sample
from tests.experiments import small_video

WIDTH = 6  # features of a word


def words(prompts: list[str]) -> list[dict]:
    """Encode each word as numbers that depend on its letters."""
    rows = []
    for prompt in prompts:
        sums = [sum(map(ord, word)) for word in prompt.split()] or [0]
        tokens = np.sin(np.outer(sums, np.arange(1.0, WIDTH + 1))).astype(np.float32)
        rows.append({"tokens": tokens, "pooled": tokens.mean(0)})
    return rows


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch):
    small_video.use_block_means(monkeypatch)
    monkeypatch.setattr(Prompts, "_encode", lambda self, prompts: words(prompts))


def small(config, folder, latents=None):
    config.condition.update(directory=f"{folder}/prompts", encoder="words")
    config.condition.update(features=WIDTH, pooled_features=WIDTH)
    return small_video.narrow(config, latents)


def batch_of(config, task):
    return training_batches(config, task, make_mesh({"data": 1}, 4))[0]


def step(config):
    """Return the task, the state after a step, and the first batch."""
    task = build(config)
    batch, frozen = batch_of(config, task), task.frozen()
    state = jax.jit(task.init)(jax.random.key(0))
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    return task, after, batch


def test_text_to_video_on_latents_encoded_once_or_within_the_step(tmp_path):
    """Both see the block means of the same clips, with the captions of these clips."""
    within = small(moving_digits_video.get_config(), tmp_path)
    task, state, clips = step(within)
    once = small(moving_digits_video.get_config(), tmp_path, f"{tmp_path}/latents")
    encoding.write(once)
    stored = build(once)
    latents = batch_of(once, stored)
    blocks = to_float(clips["video"]).reshape(4, 17, 8, 2, 8, 2).mean((3, 5))
    means = np.concatenate([blocks[:, :1], blocks[:, 1:].reshape(4, 4, 4, 8, 8).mean(2)], 1)
    decoded = np.concatenate([means[:, :1], means[:, 1:].repeat(4, axis=1)], 1)
    decoded = decoded.repeat(2, axis=2).repeat(2, axis=3)[..., None]
    for each, examples in ((task, clips["video"]), (stored, latents["image"])):
        assert each.space.shape == (5, 4, 4, 4)
        (frozen,) = each.frozen()
        encoded = each.space.encode(examples, frozen)
        np.testing.assert_allclose(each.space.decode(encoded, frozen), decoded, atol=1e-6)
    np.testing.assert_array_equal(clips["tokens"], latents["tokens"])
    samples = sample(task, state, np.arange(8), within.sampling)
    assert samples.shape == (8, 17, 16, 16, 1) and samples.dtype == np.uint8
