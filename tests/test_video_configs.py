"""The configs of video: a step and samples of each at toy size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import animated_emoji_video, moving_digits_video, text_to_video
from experiments.configuration.runs import build
from experiments.evaluation.context import Model
from experiments.inputs.datasets import Data, training_batches
from experiments.launch import encoding
from experiments.launch.experiment import Experiment
from experiments.tasks.causal_video import CausalVideo
from genjax.data import to_float, to_uint8
from genjax.devices import make_mesh
from genjax.nn import Text
from genjax.training.sampling import mesh_of, sample, sampling_program
from tests.experiments import small_video

WIDTH = 6  # features of a word
RESTART = dict(name="restart", first=0, last=1)


def states(length):
    """Return an encoder of words, as numbers that depend on their letters, without `pooled`."""

    def encode(prompts: list[str]) -> Text:
        tokens, mask = np.zeros((len(prompts), length, WIDTH), np.float32), []
        for row, prompt in zip(tokens, prompts, strict=True):
            sums = [sum(map(ord, word)) for word in prompt.split()] or [0]
            row[: len(sums)] = np.sin(np.outer(sums, np.arange(1.0, WIDTH + 1)))
            mask.append(np.arange(length) < len(sums))
        return Text(tokens, mask=np.stack(mask))

    return encode


def pooled_states(length):
    """Return the encoder with a `pooled`, the first word."""

    def encode(prompts: list[str]) -> Text:
        text = states(length)(prompts)
        return text.replace(pooled=text.tokens[:, 0])

    return encode


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch):
    small_video.use_block_means(monkeypatch)


def small(config, folder, latents=None):
    config.condition.update(directory=f"{folder}/prompts", encoder=f"{__name__}.pooled_states")
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


@pytest.mark.slow
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


def test_animated_emoji_take_a_step(tmp_path):
    config = animated_emoji_video.get_config()
    assert config.data.flip and config.data.image_shape == (17, 32, 32, 3)
    measures = {measure.name for measure in config.evaluation.measures.values()}
    assert measures == {"Motion", "VideoDistance", "PromptMatch"}
    config.data.flip = False  # the small clips' captions name left and right
    task, state, clips = step(small(config, tmp_path))
    assert clips["video"].shape == (4, 17, 16, 16, 1) and clips["tokens"].shape == (4, 16, WIDTH)
    assert len(task.condition.prompts) == 10


def test_one_network_takes_clips_of_all_buckets(tmp_path):
    """Lengths of 17, 5 and 1 frames, and two proportions: the last are of pictures."""
    config = small(moving_digits_video.get_config(), tmp_path)
    config.data.name = "tests.experiments.small_video.load_varied"
    config.data.buckets = dict(multiple=8, max_ratio=4.0, frames=(17, 5, 1))
    task = build(config)
    batches = training_batches(config, task, make_mesh({"data": 1}, 4))
    (frozen,), key = task.frozen(), jax.random.key(0)
    state, shapes, words = jax.jit(task.init)(key), set(), {}
    for step in range(6):  # an epoch of 24 clips
        batch = batches[step]
        shapes.add(batch["video"].shape[1:4])
        words.setdefault(batch["video"].shape[2:4], []).append(batch["tokens"])
        if batch["video"].shape[1] < 17:
            _, metrics = jax.eval_shape(task.update, state, batch, key, frozen)
            assert metrics["loss"].shape == ()
    assert shapes == {(n, *size) for n in (17, 5, 1) for size in ((16, 16), (8, 32))}
    (square, *_), (wide, *_) = words[16, 16], words[8, 32]
    assert np.ptp(square, axis=0).max() == 0 and np.any(square[0] != wide[0])
    assert Data.from_config(config).held_out().source[:]["video"].shape == (8, 17, 16, 16, 1)


def first_frames(count):
    """Return the first held-out clips' block means, in bytes."""
    clips = small_video.load("test").source[:count]["video"]
    blocks = to_float(clips).reshape(count, 17, 8, 2, 8, 2).mean((3, 5))
    decoded = blocks.repeat(2, axis=2).repeat(2, axis=3)[..., None]
    return to_uint8(decoded)


@pytest.mark.slow
def test_image_to_video_keeps_the_given_frame(tmp_path):
    """Samples start with what the autoencoder makes of the frame, and no evaluation is needed."""
    config = small(moving_digits_video.get_config("image_to_video"), tmp_path)
    task, state, _ = step(config)
    samples = sample(task, state, np.arange(8), config.sampling)
    np.testing.assert_array_equal(samples[:, 0], first_frames(8)[:, 0])
    later = np.abs(samples[:, 1:].astype(int) - first_frames(8)[:, 1:])
    assert later.mean() > 5  # one step of training: noise
    assert task.condition.row_names(None) == tuple(
        texts[0] for texts in small_video.load("test").captions
    )
    config.sampling.given = (0, -1)
    config.evaluation.num_samples = 4
    experiment = Experiment.from_config(config, task)
    report = experiment.evaluate(Model(task, state, config.sampling))
    assert report["given_frames"] == [0, 13, 14, 15, 16]
    error = report["given_frames_error_reconstruction"]
    np.testing.assert_allclose(report["given_frames_error"], error, rtol=1e-6)
    clips, means = small_video.load("test").source[:4]["video"], first_frames(4)
    assert error > 0
    samples = sample(task, state, np.arange(4), config.sampling)
    np.testing.assert_array_equal(samples[:, 0], means[:, 0])
    assert clips.shape == samples.shape


def test_prompts_have_clips_of_their_captions(tmp_path):
    """The squares' directions repeat after four clips; their colours tell clips apart."""
    config = small(moving_digits_video.get_config("image_to_video"), tmp_path)
    prompts = ["a square moves left", "a circle", "a square moves up", "a square moves up"]
    task = build(config).with_prompts(prompts)
    (frozen,), held_out = task.frozen(), small_video.load("test")
    expected = held_out.source[np.array([3, 1, 0, 4])]["video"]
    np.testing.assert_array_equal(frozen["clips"], expected)
    labels = np.array([2, 2, 0])
    names = task.condition.row_names(None)
    real = task.condition.real_examples(None, labels, names)
    np.testing.assert_array_equal(real.examples, expected[labels])
    assert real.names == names == tuple(prompts) and real.present is None
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), frozen)
    (abstract,) = task.abstract_frozen()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == shapes


@pytest.mark.slow
def test_causal_video_continues_clips_beyond_their_length(tmp_path):
    config = small(moving_digits_video.get_config("causal"), tmp_path)
    task, state, _ = step(config)
    config.sampling.update(given=(0, 1), frames=7, history_scale=1.5)
    programs = sampling_program(task, config.sampling.weights, False, mesh_of(state))
    samples = sample(task, state, np.arange(4), config.sampling)
    assert samples.shape == (4, 25, 16, 16, 1)
    np.testing.assert_array_equal(samples[:, 0], first_frames(4)[:, 0])
    config.sampling.update(history_scale=2.5, guidance_scale=3.0)
    other = sample(task, state, np.arange(4), config.sampling)
    np.testing.assert_array_equal(other[:, :5], samples[:, :5])
    assert np.any(other != samples) and programs._cache_size() == 1
    state_by_frame = sample(task, state, np.arange(4), config.sampling, trajectory=True)
    assert state_by_frame.shape == (6, 4, 25, 16, 16, 1)
    np.testing.assert_array_equal(state_by_frame[-1], other)


@pytest.mark.parametrize(
    ("sampler", "given", "evaluations"),
    [("euler", (), 4 * (2 + 1)), ("euler", (0, 1), 2 * (2 + 1) + 1), ("heun", (), 4 * (4 + 1))],
)
def test_evaluations_of_a_roll_out_are_the_calls_of_its_network(
    sampler, given, evaluations, tmp_path
):
    """Four frames in two steps each; the network is a stand-in that counts its calls."""
    calls = []

    class Counted(CausalVideo):
        def _apply(self, params, frozen):
            def extend(frames, t, condition, cache, method):
                jax.debug.callback(lambda: calls.append(1))
                return frames, cache

            return extend

    config = small(moving_digits_video.get_config("causal"), tmp_path)
    config.sampling.update(given=given, frames=4)
    config.sampling.sampler.name = sampler
    task, labels = Counted(**vars(build(config))), jnp.arange(2)
    inputs = task.sampling_inputs(config.sampling)
    jax.block_until_ready(task.solve({}, jax.random.key(0), labels, labels, *inputs))
    jax.effects_barrier()
    assert task.num_evaluations(config.sampling) == len(calls) == evaluations


def test_a_roll_out_remembers_frames_at_times_that_its_network_knows(tmp_path):
    """EDM's network takes log(sigma)/4. Its history is clean, or pure noise."""
    seen = []

    class Told(CausalVideo):
        def _apply(self, params, frozen):
            def extend(frames, t, condition, cache, method):
                jax.debug.callback(lambda t: seen.extend(np.unique(t)), t)
                return frames, cache

            return extend

    config = small(moving_digits_video.get_config("causal"), tmp_path)
    config.process.name, config.target.name = "EDM", "edm"
    config.sampling.update(frames=3, history_scale=1.5)
    task, labels = Told(**vars(build(config))), jnp.arange(2)
    inputs = task.sampling_inputs(config.sampling)
    jax.block_until_ready(task.solve({}, jax.random.key(0), labels, labels, *inputs))
    jax.effects_barrier()
    np.testing.assert_allclose(
        sorted({float(t) for t in seen}), np.log(task.process.domain) / 4, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("choice", "frames", "loss"),
    [("image_to_video", 17, {}), ("causal", 33, {}), ("causal", 33, dict(name="hybrid_loss"))],
)
def test_sampling_is_planned_without_loading_anything(choice, frames, loss, tmp_path, monkeypatch):
    config = small(moving_digits_video.get_config(choice), tmp_path)
    config.loss.update(loss)
    if loss:  # a variance beside the 4 channels of the latents
        config.model.out_channels = 8
    task, labels, key = build(config), np.arange(3), jax.random.key(0)
    monkeypatch.setattr(Data, "load", None)
    state = jax.eval_shape(task.init, key)
    inputs = task.abstract_sampling_inputs(config.sampling, {}, task.abstract_frozen())
    samples = jax.eval_shape(task.generate, state, key, labels, labels, *inputs)
    assert samples.shape == (3, frames, 16, 16, 1)


@pytest.mark.parametrize(
    ("choice", "changes", "message"),
    [
        ("image_to_video", {"sampling.given": (5,)}, "frames 0 to 4"),
        ("image_to_video", {"sampling.sampler.name": "adaptive"}, "'ddim', .*: a time grid has"),
        ("image_to_video", {"sampling.sampler": RESTART}, "'ddim', .*: restart goes back and"),
        ("image_to_video", {"condition.name": "Prompts"}, "no clips to take frames of"),
        ("image_to_video", {"model.patch_size": (5, 2, 2)}, "a patch must have one frame"),
        ("causal", {"model.patch_size": (5, 2, 2)}, "a patch must have one frame"),
        ("causal", {"model.causal": False}, "not causal"),
        ("causal", {"loss.time_axes": 1}, "config.loss.time_axes to 2"),
        ("causal", {"sampling.given": (1,)}, "in order, at most 5"),
        ("causal", {"sampling.given": (0, 1), "sampling.frames": 2}, "in order, at most 1"),
        (
            "causal",
            {"sampling.guidance_interval": (0.2, 0.8)},
            "CausalVideo guides at all times: leave it out",
        ),
    ],
)
def test_frames_and_networks_that_do_not_fit_are_refused(choice, changes, message, tmp_path):
    config = small(moving_digits_video.get_config(choice), tmp_path)
    if "condition.name" in changes:
        del config.condition.rows
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build(config)


def test_given_frames_of_a_roll_out_are_checked_when_it_is_sampled(tmp_path):
    """A run is built once, and sampled with other frames then."""
    config = small(moving_digits_video.get_config("causal"), tmp_path)
    task = build(config)
    config.sampling.given = (1,)
    with pytest.raises(ValueError, match="in order, at most 5"):
        task.sampling_inputs(config.sampling)


def test_more_rows_than_clips_are_refused(tmp_path):
    config = small(moving_digits_video.get_config("causal"), tmp_path)
    config.condition.rows = 9
    with pytest.raises(ValueError, match="rows is 9, and .* has 8 clips with captions"):
        build(config).frozen()


def test_text_to_video_takes_a_step_with_an_encoder_without_pooled(tmp_path):
    """As Wan's: states of tokens alone. Other numbers of features are refused."""
    config = small(text_to_video.get_config("wan_1b"), tmp_path)
    config.data.options = {}  # the squares have none
    config.model = dict(name="Wan", width=16, depth=1, num_heads=2, mlp_features=16)
    config.condition.update(encoder=f"{__name__}.states", length=8, pooled_features=0)
    task, _, batch = step(config)
    assert batch["tokens"].shape == (4, 8, WIDTH) and batch["pooled"].shape == (4, 0)
    (frozen,) = task.frozen()
    prompts = frozen["prompts"]
    assert prompts.mask.any() and prompts.pooled.shape == (len(prompts.tokens), 0)
    config.condition.update(pooled_features=5, directory=f"{tmp_path}/others")
    with pytest.raises(ValueError, match=rf"\({WIDTH}, 0\), and config.condition has \({WIDTH}, 5"):
        build(config).frozen()


@pytest.mark.parametrize("choice", ["wan_14b", "moviegen_30b"])
def test_clips_of_a_folder_have_the_shape_of_the_config(choice, tmp_path):
    """The first of the frames, from a clip of another size; the number of frames is read off."""
    pytest.importorskip("av")
    from tests.data.sets.test_clips import write

    write(tmp_path / "train/a.mkv", np.zeros((2, 36, 48, 3), np.uint8), [0.0, 0.1])
    config = text_to_video.get_config(choice)
    config.data.directory = str(tmp_path)
    frames, *shape = config.data.image_shape
    assert config.data.options.num_frames == frames
    config.data.options.num_frames = 1
    assert Data.from_config(config).train().image_shape == (1, *shape)


def test_movie_gen_sees_the_published_number_of_tokens():
    """256 frames of 768×768, factors of 8, and patches of 1×2×2 (Polyak et al. 2024)."""
    config = text_to_video.get_config("moviegen_30b")
    frames, height, width, _ = config.data.image_shape
    assert (frames, height, width) == (256, 768, 768)
    latents = config.space.shape[:3]
    assert latents == (frames // 8, height // 8, width // 8)
    assert latents[0] * (latents[1] // 2) * (latents[2] // 2) == 73_728
