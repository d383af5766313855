"""Standardized pixels: moments by hand, the way back, and the diffusion task on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_gan, digits_likelihood, digits_vae, emoji_autoencoder
from experiments.configuration import base, kinds
from experiments.configuration.runs import build
from experiments.inputs.datasets import Data
from experiments.inputs.sound_and_video import SoundAndVideo
from genjax.data import Batches, Dataset, InMemory, to_float
from genjax.training.sampling import sample
from genjax.training.workdir import Config

SHAPE = (3, 4, 4, 1)  # frames, rows, columns, channels


def load(split, data_dir):
    """Return clips of which one pixel flickers fully, one faintly, and the others never."""
    random = np.random.default_rng(split == "test")
    clips = np.full((60, *SHAPE), 90, np.uint8)
    clips[:, :, 0, 0, 0] = random.integers(0, 2, (60, 3)) * 255
    clips[:, :, 2, 1, 0] = random.integers(100, 110, (60, 3))
    return Dataset("flicker", split, InMemory({"video": clips}))


def config(**fields):
    config = base.diffusion("flicker", feature="video", name=f"{__name__}.load", image_shape=SHAPE)
    config.space = dict(name="StandardizedPixels", examples=40) | fields
    config.condition = dict(name="Unconditional")
    config.model = dict(name="VideoDiT", patch_size=(1, 2, 2), width=16, depth=1, num_heads=2)
    config.batch_size, config.num_steps, config.sampling.num_steps = 4, 10, 2
    return config


def space(**fields):
    made = config(**fields)
    return kinds.SPACE.bind(made.space, "space", data=made.data)


def test_each_pixel_has_its_own_moments_of_the_measured_examples():
    """All frames of a clip have the same ones, and only the first 40 clips are measured."""
    clips = load("train", None).source[:40]["video"]
    standard = space()
    frozen = standard.frozen()
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, standard.abstract_frozen())
    encoded = np.asarray(standard.encode(jnp.asarray(clips), frozen))
    for row, column in ((0, 0), (2, 1)):
        pixel = clips[:, :, row, column].astype(np.float64)
        deviation = max(pixel.std(), 0.02 * 127.5)
        expected = (pixel - pixel.mean()) / deviation
        np.testing.assert_allclose(encoded[:, :, row, column], expected, atol=1e-3)
    still = np.delete(encoded.reshape(-1, 16), (0, 9), axis=1)
    np.testing.assert_allclose(still, 0, atol=1e-4)


def test_the_way_back_gives_the_same_bytes_also_of_clips_not_measured():
    """Floats are pixels too, as in every space of pixels."""
    standard = space(floor=0.1)
    frozen = standard.frozen()
    clips = load("test", None).source[:]["video"]
    as_floats = standard.encode(to_float(jnp.asarray(clips)), frozen)
    np.testing.assert_array_equal(standard.encode(jnp.asarray(clips), frozen), as_floats)
    decoded = standard.decode(standard.encode(jnp.asarray(clips), frozen), frozen)
    np.testing.assert_array_equal(standard.to_data(decoded), clips)


@pytest.mark.slow
def test_diffusion_trains_and_samples():
    made = config()
    task, key = build(made), jax.random.key(0)
    frozen = {**task.space.frozen(), **task.condition.frozen()}
    batch = Batches(load("train", None), 4, 0)[0]
    state, update = jax.jit(task.init)(key), jax.jit(task.update)
    losses = []
    for _ in range(3):
        state, metrics = update(state, batch, key, frozen)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]  # one key, so one loss, which falls
    clips = sample(task, state, np.zeros(3, int), made.sampling)
    assert clips.shape == (3, *SHAPE) and clips.dtype == np.uint8


@pytest.mark.parametrize("fields", [dict(examples=0), dict(floor=0.0)])
def test_numbers_that_are_not_positive_are_refused(fields):
    name, value = *fields, *fields.values()
    with pytest.raises(ValueError, match=f"config.space.{name} is {value}.*take positive numbers"):
        space(**fields)


def test_the_error_of_clips_with_sound_names_their_field():
    data = Config(config().data.to_dict(), sound_shape=(12, 1))
    video, sound = dict(space="StandardizedPixels", floor=0.0), dict(space="Waveforms")
    with pytest.raises(ValueError, match=r"config.space.video.floor is 0.0: take positive"):
        SoundAndVideo.from_data(data, video=video, sound=sound)


def test_moments_of_many_frames_are_those_of_float64(monkeypatch):
    """Float32 sums of 24,000 frames are wrong by thousandths of a deviation."""
    frames = np.random.default_rng(0).integers(0, 4, (8000, *SHAPE), np.uint8)
    many = Dataset("many", "train", InMemory({"video": frames}))
    monkeypatch.setattr(Data, "train", lambda _: many)
    moments = space(examples=8000, floor=1e-6).frozen()["moments"]
    pixels = frames.reshape(-1, *SHAPE[1:]).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(moments["mean"], pixels.mean(0), rtol=1e-7)
    np.testing.assert_allclose(moments["deviation"], pixels.std(0), rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        digits_gan.get_config(),
        digits_vae.get_config(),
        emoji_autoencoder.get_config(),
        digits_likelihood.get_config(),
    ],
    ids=lambda other: other.experiment,
)
def test_what_reads_pixels_from_minus_one_to_one_refuses_them(other):
    """Among them is the noise within a grey level, whose width is in pixels."""
    other.space = dict(name="StandardizedPixels")
    with pytest.raises(ValueError, match="set config.space.name=Pixels"):
        build(other)
