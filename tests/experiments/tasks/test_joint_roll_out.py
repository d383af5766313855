"""Sound and video of a played game: a step, actions, and windows that continue one another."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pong
from experiments.configuration.runs import build
from experiments.inputs.datasets import Data, training_batches
from experiments.tasks.diffusion import time_grid
from genjax import diffusion
from genjax.data import Dataset, InMemory
from genjax.devices import make_mesh
from genjax.training.sampling import mesh_of, sample, sampling_program
from genjax.training.workdir import Config

FRAMES, LONG, SIDE, SAMPLES, KNOWN = 4, 10, 8, 8, 2
KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0}


def load(split: str, *, num_frames: int) -> Dataset:
    """Return clips whose frames count up, in their grey level, sound and action."""
    count = {"train": 16, "test": 4}[split]
    numbers = np.arange(num_frames) + 5 * np.arange(count)[:, None]
    video = np.broadcast_to(numbers[..., None, None, None], (count, num_frames, SIDE, SIDE, 1))
    audio = np.repeat(numbers, SAMPLES, axis=1)[..., None] * 100
    arrays = {"video": video.astype(np.uint8), "audio": audio.astype(np.int16)}
    actions = (numbers % 3).astype(np.int32)
    return Dataset("counting", split, InMemory(arrays | {"action": actions}))


@functools.cache
def made(choice="actions"):
    """Return the narrow config, its task, a state with random weights, and a batch."""
    config = pong.get_config(choice)
    config.data.update(name=f"{__name__}.load", image_shape=(FRAMES, SIDE, SIDE, 1))
    config.data.update(sound_shape=(FRAMES * SAMPLES, 1), held_out_split="test")
    config.data.options = dict(num_frames=FRAMES)
    config.condition.update(frames=LONG, num_clips=4)
    config.condition.num_actions = 3 if choice == "actions" else 0
    config.model.update(video_patch=(1, 4, 4), sound_patch=4, video_width=16, sound_width=12)
    config.model.update(depth=1, num_heads=2, unroll=1, frame_rate=4.0, sound_rate=32.0)
    config.loss.update(known_part=KNOWN / FRAMES, clean_share=0.0, noise_share=0.0)
    config.batch_size, config.sampling.num_steps = 8, 2
    config.sampling.frames = FRAMES
    config.evaluation.measures = {}
    task = build(config)
    batch = training_batches(config, task, make_mesh({"data": 1}, 8))[0]
    random = np.random.default_rng(0)
    draw = lambda a: np.float32(0.1) * random.standard_normal(a.shape, np.float32)
    state = jax.eval_shape(task.init, KEY)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state)
    state = zeros.replace(averages=jax.tree.map(draw, state.averages))
    return config, task, jax.device_put(state), batch


def samples(choice="actions", labels=(0, 1, 2, 3), **changes):
    config, task, state, *_ = made(choice)
    return sample(task, state, np.array(labels), Config(dict(config.sampling) | changes))


@pytest.mark.slow
def test_steps_are_taken():
    """Two, as the warm-up begins at a rate of 0."""
    _, task, _, batch = made()
    state = after = jax.jit(task.init, compiler_options=QUICK)(KEY)
    update = jax.jit(task.update, compiler_options=QUICK)
    for _ in range(2):
        after, metrics = update(after, batch, KEY, *task.frozen())
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert moved["video"] and moved["sound"] and max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("choice", pong.CHOICES)
def test_the_network_is_told_actions_or_none(choice):
    _, task, state, batch = made(choice)
    assert ("action_embedding" in state.params) == (choice == "actions")
    told = task.condition.of_batch(batch)
    if choice == "actions":
        np.testing.assert_array_equal(told.actions, batch["action"])
        assert np.all(task.condition.null(None).actions == 3)  # the number of no action
    else:
        assert told.shape == (8,) and not told.any()


def test_a_long_sample_keeps_the_given_frames_and_their_sound():
    clips = load("test", num_frames=LONG).source[:]
    long = samples(given=tuple(range(KNOWN)), frames=LONG)
    assert long["video"].shape == (4, LONG, SIDE, SIDE, 1)
    assert long["sound"].shape == (4, LONG * SAMPLES, 1)
    np.testing.assert_array_equal(long["video"][:, :KNOWN], clips["video"][:, :KNOWN])
    rows = KNOWN * SAMPLES
    np.testing.assert_array_equal(long["sound"][:, :rows], clips["audio"][:, :rows])
    assert np.any(long["video"][:, KNOWN:] != clips["video"][:, KNOWN:])


def test_each_window_continues_the_one_before_with_its_own_actions():
    """A longer sample begins as the shorter one, and only later frames see later actions."""
    _, task, *_ = made()
    shorter, longer = (samples(given=(0, 1), frames=frames) for frames in (8, LONG))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, : a.shape[1]]), shorter, longer)
    frozen, labels = task.frozen()[0], jnp.array([2, 0])
    told = task.condition.of_labels(labels, frozen, 4)
    np.testing.assert_array_equal(
        told.actions, load("test", num_frames=8).source[:]["action"][[2, 0], 4:]
    )
    clips = task.condition.clips(labels, frozen, 4)
    whole = load("test", num_frames=8).source[:]
    np.testing.assert_array_equal(clips["video"], whole["video"][[2, 0], 4:])
    np.testing.assert_array_equal(clips["sound"], whole["audio"][[2, 0], 4 * SAMPLES :])


def test_later_actions_do_not_change_earlier_windows(monkeypatch):
    config, task, state, *_ = made()
    sampling = Config(dict(config.sampling) | dict(given=(0, 1), frames=LONG))
    inputs = task.sampling_inputs(sampling)
    (*others, frozen), labels = inputs, jnp.arange(4)
    generate = jax.jit(functools.partial(task.generate, weights="ema"), compiler_options=QUICK)
    sampled = {}
    for first in (LONG, 8, 0):
        clips = dict(frozen["clips"])
        clips["action"] = clips["action"].copy()
        clips["action"][:, first:] = (clips["action"][:, first:] + 1) % 3
        given = frozen | {"clips": clips}
        sampled[first] = generate(state, KEY, labels, labels, *others, given)["video"]
    same = sampled[8] == sampled[LONG]
    assert same[:, :8].all() and not same[:, 8:].all()
    assert not (sampled[0] == sampled[LONG])[:, KNOWN:8].all()


def test_a_given_modality_is_kept_and_one_program_serves_all_that_is_given():
    config, task, state, *_ = made()
    clips = load("test", num_frames=FRAMES).source[:]
    for given, kept in (("video", "video"), ("sound", "audio")):
        found = samples(given=(given,))
        np.testing.assert_array_equal(found[given], clips[kept])
    samples(given=()), samples(given=(0, 1))
    program = sampling_program(task, "ema", False, mesh_of(state))
    before = program._cache_size()
    samples(given=("sound",)), samples(given=(0, 1))
    assert program._cache_size() == before
    assert np.any(samples(given=())["video"] != samples(given=(0, 1))["video"])


def test_the_trajectory_ends_in_the_samples():
    config, task, state, *_ = made()
    sampling = Config(dict(config.sampling) | dict(given=(0, 1), frames=8))
    path = sample(task, state, np.arange(4), sampling, trajectory=True)
    assert path["video"].shape == (3, 4, 8, SIDE, SIDE, 1)
    windows = path["video"][0, :, 2:].reshape(4, 3, 2, -1)  # their new frames, which are noise
    assert np.any(windows[:, 0] != windows[:, 1]) and np.any(windows[:, 1] != windows[:, 2])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[-1], b), path, samples(given=(0, 1), frames=8)
    )
    assert task.num_evaluations(sampling) == 3 * 2 and task.functions(None, sampling) == {
        "known_frames": KNOWN
    }


def test_samples_have_the_noise_of_their_times():
    """With an exact prediction of the data, samples keep their own noise at every time."""
    config, task, *_ = made()
    process, shapes = task.process, {"video": (1, 4, 1), "sound": (1, 8, 1)}
    data = {name: jnp.full(shape, 0.5) for name, shape in shapes.items()}
    noise = {name: jax.random.normal(KEY, shape) for name, shape in shapes.items()}
    exact = lambda x_t, t: diffusion.recover(process, diffusion.clean, x_t, data, t)
    grid = time_grid(process, config.sampling)
    path = task.sampler(exact, process, noise, grid, trajectory=True)
    for name, times in grid.items():
        for state, t in zip(path[name], times, strict=True):
            expected = process[name].corrupt(data[name], noise[name], t[None])
            np.testing.assert_allclose(state, expected, atol=1e-5)


def test_sampling_is_planned_without_loading_anything(monkeypatch):
    config, task, *_ = made()
    (frozen,) = task.frozen()
    (abstract,) = task.abstract_frozen()
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(frozen) == shapes(abstract)
    monkeypatch.setattr(Data, "load", None)
    fresh = build(config)
    state, labels = jax.eval_shape(fresh.init, KEY), np.arange(3)
    inputs = fresh.abstract_sampling_inputs(config.sampling, {}, fresh.abstract_frozen())
    found = jax.eval_shape(fresh.generate, state, KEY, labels, labels, *inputs)
    assert found["sound"].shape == (3, FRAMES * SAMPLES, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.frames": 7}, "take 4, 6, … frames, 2 for each window, and at most .*=10"),
        ({"sampling.frames": 12}, "at most config.condition.frames=10"),
        ({"sampling.given": (0,)}, "continues the first 2 frames of a clip: give all of 0 to 1"),
        ({"sampling.given": ("picture",)}, "name some but not all of sound, video"),
        ({"sampling.sampler.name": "dpm_solver_pp_sde"}, "'ddim', .*: dpm_solver_pp_sde draws"),
        ({"sampling.guidance_scale": {"video": 3.0}}, "give a number, or one for each of sound, v"),
        ({"model.video_patch": (4, 4, 4)}, "makes 2 rows of video known, and a patch has 4 rows"),
        ({"model.sound_patch": 32}, "makes 16 rows of sound known, and a patch has 32 rows"),
        ({"loss.known_part": 0.3}, "0.3 of 4 rows is 1.2 rows"),
        ({"loss.known_part": 1.0}, "a whole number from 1 to 3"),
        ({"data.flip": True}, "flip is True, which would mirror clips and keep their actions"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    config = made()[0].copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_clips": 5}, "num_clips is 5 and num_rows 4, and labels stand for 4 clips of"),
        ({"num_clips": 2}, "num_clips is 2 and num_rows 4, and labels stand for 2 clips of"),
        ({"num_actions": 2}, r"num_actions is 2, and .*load \(test\) has actions up to 2"),
    ],
)
def test_labels_and_actions_that_are_not_there_are_refused(fields, message):
    """Indices beyond an array would take its last row, or NaN."""
    condition = replace(made()[1].condition, **fields)
    with pytest.raises(ValueError, match=message):
        condition.frozen()
