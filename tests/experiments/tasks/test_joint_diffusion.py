"""Sound and video together: a step, samples in three modes, devices, and going on in the middle."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration.runs import build
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data, training_batches
from experiments.tasks.joint_objective import JointObjective
from genjax.devices import make_mesh
from genjax.training import Checkpoints, Mean
from genjax.training.sampling import mesh_of, sample, sampling_program
from tests.experiments import joint_run, small_sounding
from tests.virtual_devices import lines_of

KEY = jax.random.key(1)
# Compiles in less time, for programs that run a few times.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def encoded_by_letters(monkeypatch):
    monkeypatch.setattr(Prompts, "_encode", lambda self, prompts: small_sounding.words(prompts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("prompts"))


class Made(NamedTuple):
    """A config with its task, its batches, the compiled update, and what it made of two batches."""

    config: Any
    task: Any
    batches: Any
    frozen: tuple
    update: Callable
    states: list
    metrics: list

    @property
    def trained(self):
        """Return a state whose streams read each other, as after a long training."""
        state, random = self.states[2], np.random.default_rng(0)
        draw = lambda a: a + np.float32(0.1) * random.standard_normal(a.shape, np.float32)
        return state.replace(averages={"ema": jax.tree.map(draw, state.averages["ema"])})


@functools.cache
def made(folder):
    config = small_sounding.config(folder)
    task = build(config)
    batches = training_batches(config, task, make_mesh({"data": 1}, 8))
    frozen, update = task.frozen(), jax.jit(task.update, compiler_options=QUICK)
    states = [jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))]
    metrics = []
    for step in range(joint_run.STEPS):
        key = jax.random.fold_in(KEY, step)
        state, found = update(states[-1], batches[step], key, *frozen)
        states.append(state)
        metrics.append(found)
    return Made(config, task, batches, frozen, update, states, metrics)


@pytest.mark.slow
def test_a_step_trains_both_streams_and_counts_both_losses(folder):
    this = made(folder)
    before, after, metrics = *this.states[:2], this.metrics[0]
    assert np.isfinite(metrics["loss"])
    for name in ("video", "sound"):
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), *(s.params[name] for s in (before, after))
        )
        assert max(jax.tree.leaves(moved)) > 0
    bins = {n: np.array(m) for n, m in metrics.items() if n.startswith("loss/")}
    assert len(bins) == 16
    totals = {n: sum(b for m, b in bins.items() if f"/{n}/" in m) for n in ("video", "sound")}
    # Sums and counts of 8 examples; a modality that is given has no loss and is not counted.
    counts = {n: totals[n][1] for n in totals}
    assert max(counts.values()) <= 8 and 8 <= sum(counts.values()) <= 16
    loss = (totals["video"][0] + 0.5 * totals["sound"][0]) / 8
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


@pytest.mark.slow
def test_samples_keep_the_given_modality_bit_by_bit_in_one_program(folder):
    this, held_out = made(folder), small_sounding.load("test").source[:]
    state, changes = this.trained, dict(this.config.sampling)
    samples = {}
    for given in ((), ("video",), ("sound",)):
        sampling = SimpleNamespace(**changes | {"given": given})
        samples[given] = sample(this.task, state, np.arange(4), sampling)
    both = samples[()]
    assert both["video"].shape == (4, *small_sounding.VIDEO) and both["video"].dtype == np.uint8
    assert both["sound"].shape == (4, *small_sounding.SOUND) and both["sound"].dtype == np.int16
    np.testing.assert_array_equal(samples["video",]["video"], held_out["video"])
    np.testing.assert_array_equal(samples["sound",]["sound"], held_out["audio"])
    for given, sampled in (("video", "sound"), ("sound", "video")):
        assert np.any(samples[given,][sampled] != both[sampled])
        assert np.any(both[given] != samples[given,][given])
    guided = SimpleNamespace(**changes | {"modality_scale": dict(video=1.0, sound=3.0)})
    other = sample(this.task, state, np.arange(4), guided)
    assert np.any(other["sound"] != both["sound"])
    program = sampling_program(this.task, "ema", False, mesh_of(state))
    assert program._cache_size() == 1


@pytest.mark.slow
def test_a_modality_sampled_first_waits_for_the_other(folder):
    """The first half of the path leaves sound as it is, and the second half video."""
    this = made(folder)
    sampling = SimpleNamespace(**dict(this.config.sampling) | {"first": ("video",)})
    path = sample(this.task, this.trained, np.arange(4), sampling, trajectory=True)
    changes = {name: np.any(a[1:] != a[:-1], (1, *range(2, a.ndim))) for name, a in path.items()}
    assert changes["video"].tolist() == [True, True, False, False]
    assert changes["sound"].tolist() == [False, False, True, True]
    assert this.task.num_evaluations(sampling) == 4
    assert this.task.describe_sampling(sampling)["first"] == ["video"]
    for given in ("video", "sound"):  # nothing is left to wait for
        one = SimpleNamespace(**vars(sampling) | {"given": (given,)})
        assert this.task.num_evaluations(one) == 2


@pytest.mark.slow
def test_the_trajectory_ends_in_the_samples(folder):
    this = made(folder)
    path = sample(this.task, this.trained, np.arange(4), this.config.sampling, trajectory=True)
    samples = sample(this.task, this.trained, np.arange(4), this.config.sampling)
    assert path["video"].shape == (3, 4, *small_sounding.VIDEO)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-1], b), path, samples)


@pytest.mark.slow
def test_a_run_that_stops_in_the_middle_goes_on_bit_by_bit(folder, tmp_path):
    this = made(folder)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, this.states[1])
        checkpoints.wait()
        restored = checkpoints.restore(1, jax.eval_shape(this.task.init, jax.random.key(0)))
    state, _ = this.update(restored, this.batches[1], jax.random.fold_in(KEY, 1), *this.frozen)
    jax.tree.map(np.testing.assert_array_equal, state, this.states[2])


@pytest.mark.slow
def test_clean_prediction_of_spectrograms_stays_finite_and_keeps_what_is_given(folder):
    """At time 0 the clean target says nothing of the noise, and a loss of 0 would be 0 · NaN."""
    config = small_sounding.config(folder, "spectrograms")
    task, clips = build(config), small_sounding.load("test").source[:]
    assert task.space.shape == {"video": small_sounding.VIDEO, "sound": (4, 4)}
    state, frozen = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0)), task.frozen()
    update = jax.jit(task.update, compiler_options=QUICK)
    batches = training_batches(config, task, make_mesh({"data": 1}, 8))
    for step in range(3):  # of 24 examples about 7 have a given modality
        state, metrics = update(state, batches[step], jax.random.fold_in(KEY, step), *frozen)
    assert np.isfinite(metrics["loss"])
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))
    made_of = lambda given: sample(
        task, state, np.arange(4), SimpleNamespace(**dict(config.sampling) | {"given": given})
    )
    np.testing.assert_array_equal(made_of(("video",))["video"], clips["video"])
    sound = task.space.sound
    heard = sound.to_data(sound.decode(sound.encode(clips["audio"])))
    assert np.abs(made_of(("sound",))["sound"].astype(int) - heard).max() <= 1
    assert np.any(made_of(())["sound"] != heard)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(folder):
    mesh = '{"data": 2, "fsdp": 2, "context": 2}'
    [rows] = lines_of("tests.experiments.joint_run", 8, folder, mesh)
    for found, expected in zip(rows, made(folder).metrics, strict=True):
        for name, value in expected.items():  # sums in another order
            one = value.total if isinstance(value, Mean) else value
            tolerance = dict(rtol=5e-5, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(found[name], one, **tolerance)


def test_sampling_is_planned_without_loading_anything(folder, monkeypatch):
    config = small_sounding.config(folder)
    task, labels = build(config), np.arange(3)
    monkeypatch.setattr(Data, "load", None)
    state = jax.eval_shape(task.init, KEY)
    inputs = task.abstract_sampling_inputs(config.sampling, {}, task.abstract_frozen())
    samples = jax.eval_shape(task.generate, state, KEY, labels, labels, *inputs)
    shapes = {"video": (3, *small_sounding.VIDEO), "sound": (3, *small_sounding.SOUND)}
    assert {name: a.shape for name, a in samples.items()} == shapes


def test_noise_within_levels_is_added_to_pixels_alone(folder):
    """Two of 17 levels are an eighth apart, so pixels move by up to a sixteenth."""
    config, clips = small_sounding.config(folder), small_sounding.load("test").source[:]
    batch = {name: jnp.asarray(a) for name, a in clips.items()}
    plain = build(config)._examples(batch, KEY, None)
    config.data.dequantize_levels = 17
    noisy = build(config)._examples(batch, KEY, None)
    np.testing.assert_array_equal(noisy["sound"], plain["sound"])
    moved = np.abs(noisy["video"] - plain["video"])
    assert 0.05 < moved.max() < 0.0626


def test_modalities_draw_their_times_in_their_own_ways(folder):
    """Stratified times of 64 examples lie in 64 parts of the domain, one in each."""
    config, seen = small_sounding.config(folder), {}
    config.loss.update(clean_share=0.0, noise_share=0.0)
    config.modalities.video.times = dict(name="uniform", variates="stratified")
    config.modalities.sound.times = dict(name="uniform")

    def apply(x_t, t, condition):
        seen.update(t)
        return x_t

    x = {"sound": jnp.zeros((64, 8, 1)), "video": jnp.zeros((64, 4, 1))}
    null = jnp.zeros((), int)
    JointObjective.from_config(config)(KEY, apply, x, jnp.zeros(64, int), null)
    parts = {name: np.unique(np.floor(np.asarray(t) * 64)) for name, t in seen.items()}
    assert len(parts["video"]) == 64 and len(parts["sound"]) < 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.given": ("picture",)}, "name some but not all of sound, video"),
        ({"sampling.given": ("sound", "video")}, "name some but not all of sound, video"),
        ({"sampling.first": ("sound", "video")}, "first is .*; give a tuple that names some"),
        ({"sampling.first": "video"}, "first is 'video'; give a tuple that names some but not all"),
        ({"sampling.sampler.name": "adaptive"}, "'ddim', .*: adaptive takes one process"),
        ({"sampling.sampler": dict(name="restart", first=0, last=1)}, "'ddim', .*: restart goes"),
        ({"condition.name": "CaptionedClips"}, "no clips with sound"),
        ({"model.sound_patch": 5}, "do not divide into patches of 5×1×1"),
        ({"sampling.guidance_interval": (0.2, 0.8)}, "JointDiffusion guides at all times"),
        ({"sampling.modality_scale": {"video": 1.5}}, "modality_scale is given for video; give a"),
        ({"sampling.guidance_scale": {"audio": 1.0, "video": 1.0}}, "one for each of sound, video"),
        ({"modalities.audio": {"weight": 1.0}}, "modalities has audio, sound, video, and the"),
        ({"data.buckets": {"multiple": 4}}, "buckets cut clips and not their sound"),
        ({"modalities.sound": {}}, "modalities.sound has no fields; it needs a weight"),
        ({"modalities.sound.loss": {}}, "modalities.sound has loss, .*; it needs a weight"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, folder):
    config = small_sounding.config(folder)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_sheet_shows_the_frames_of_a_clip_above_its_sound(folder):
    """Strips of four frames are 32 pixels wide; the sounds are silent in their second half."""
    space = build(small_sounding.config(folder)).space
    held_out = small_sounding.load("test").source[:]
    clips = {"video": held_out["video"], "sound": held_out["audio"] * np.int16(40)}
    clips["sound"][:, 16:] = 0
    cells = np.asarray(space.picture(clips, 1)).reshape(4, 74, 194)[:, 1:-1:6, 1:-1:6]
    strips = np.moveaxis(clips["video"][..., 0], 1, 2).reshape(4, 8, 32)
    np.testing.assert_array_equal(cells[:, :8], strips)
    lit = (cells[:, 8:] > 0).sum(1)
    assert np.all(lit[-1, :16:2] > 2) and np.all(lit[:, 16:] <= 2)  # silence is a line
