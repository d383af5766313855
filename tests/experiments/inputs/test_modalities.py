"""Sound as a space and frames as a condition, in the diffusion task, with own networks."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.inputs import autoencoders
from experiments.inputs.datasets import Data, training_batches
from experiments.launch.encoding import Encoder, Examples
from genjax.data import Batches, Dataset, InMemory, load_dataset, to_float
from genjax.data.dataset import OnDisk
from genjax.devices import make_mesh
from genjax.nn import Text


def load_sounds(split, data_dir):
    """Sine waves of 64 samples in int16."""
    phases = np.linspace(0, 6, {"train": 16, "test": 8}[split])
    sounds = 2**14 * np.sin(phases[:, None, None] + np.arange(64)[:, None] / 3)
    return Dataset("sounds", split, InMemory({"audio": sounds.astype(np.int16)}))


def load_clips(split, data_dir):
    """Clips of three frames of random bytes."""
    count, random = {"train": 16, "test": 8}[split], np.random.default_rng(len(split))
    return Dataset(
        "clips", split, InMemory({"video": random.integers(0, 256, (count, 3, 4, 4, 1), np.uint8)})
    )


class SoundNetwork(nn.Module):
    """A convolution over time."""

    @nn.compact
    def __call__(self, x_t, t, condition):
        return nn.Conv(x_t.shape[-1], (5,))(x_t) * t[:, None, None]


class LastFrame(nn.Module):
    """Return the last given frame in the place of every frame, times a learned factor of one."""

    @nn.compact
    def __call__(self, x_t, t, frames):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * jnp.broadcast_to(frames[:, -1:], x_t.shape)


def small(name, feature, shape, **fields):
    config = base.diffusion(
        name, 1, name=f"{__name__}.load_{name}", feature=feature, image_shape=shape
    )
    config.batch_size, config.num_steps = 4, 10
    config.averages.ema.steps = 1.0
    config.sampling.update(num_steps=2, per_class=2, guidance_scale=1.0)
    for field, value in fields.items():
        config[field] = value
    return config


def test_sound_is_trained_on_sampled_and_drawn():
    network = dict(name=f"{__name__}.SoundNetwork")
    config = small("sounds", "audio", (64, 1), space=dict(name="Waveforms"), model=network)
    task, key, dataset = build(config), jax.random.key(0), load_sounds("train", None)
    batch = Batches(dataset, 4, 0)[0]
    state, update = jax.jit(task.init)(key), jax.jit(task.update)
    losses = []
    for _ in range(3):
        state, metrics = update(state, batch, key)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]  # one key, so one loss, which falls

    space, sounds = task.space, batch["audio"]
    encoded = space.encode(sounds)
    np.testing.assert_array_equal(np.asarray(encoded) * 2**15, sounds)
    np.testing.assert_array_equal(space.to_data(space.decode(encoded)), sounds)
    beyond = space.to_data(jnp.array([[1.0], [2.0], [-2.0]]))
    np.testing.assert_array_equal(beyond[:, 0], [2**15 - 1, 2**15 - 1, -(2**15)])
    labels = jnp.zeros(3, int)
    samples = jax.jit(task.generate)(
        state, key, labels, labels, *task.sampling_inputs(config.sampling)
    )
    assert samples.shape == (3, 64, 1)
    drawn = space.picture(np.asarray(space.to_data(samples)), 2)
    assert drawn.size == (2 * 162, 2 * 66)  # two columns and two rows, within borders


class Halves(nn.Module):
    """An autoencoder of sound: a latent has the mean and the half difference of two samples."""

    factor = 2
    latent_mean, latent_deviation = (0.0, 0.0), (0.25, 0.125)

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        first, second = x[:, ::2], x[:, 1::2]
        return jnp.concatenate([(first + second) / 2, (first - second) / 2], axis=-1)

    def decode(self, z):
        mean, half = jnp.split(z, 2, axis=-1)
        return jnp.concatenate([mean + half, mean - half], -1).reshape(len(z), -1, 1)


def test_latents_of_sound_are_trained_on_by_the_transformer_of_sound(monkeypatch):
    monkeypatch.setattr(autoencoders, "_published", lambda folder: (Halves(), {}))
    space = dict(name="Latents", published="halves")
    network = dict(name="AudioDiT", patch_size=4, width=16, depth=1, num_heads=2)
    config = small("sounds", "audio", (64, 1), space=space, model=network)
    config.data.sample_rate = 8000
    task, key, batch = (
        build(config),
        jax.random.key(0),
        Batches(load_sounds("train", None), 4, 0)[0],
    )
    assert task.space.shape == (32, 2) and task.space.sample_rate == 8000
    assert task.space.abstract_batch()["audio"] == jax.ShapeDtypeStruct((64, 1), jnp.int16)
    (frozen,) = task.frozen()
    latents = task.space.encode(batch["audio"], frozen)
    pairs = batch["audio"].reshape(4, 32, 2) / 2**15
    expected = np.stack([pairs.mean(-1) / 0.25, (pairs[..., 0] - pairs[..., 1]) / 2 / 0.125], -1)
    np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-6)
    decoded = task.space.to_data(task.space.decode(latents, frozen))
    np.testing.assert_array_equal(decoded, batch["audio"])
    state, update = jax.jit(task.init)(key), jax.jit(task.update)
    losses = []
    for _ in range(3):
        state, metrics = update(state, batch, key, frozen)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    labels = jnp.zeros(3, int)
    samples = jax.jit(task.generate)(
        state, key, labels, labels, *task.sampling_inputs(config.sampling)
    )
    assert samples.shape == (3, 64, 1)


def letter_codes(length):
    """A text encoder: a token's state is the code of its letter."""

    def encode(prompts):
        codes = [[ord(letter) for letter in text[:length].ljust(length)] for text in prompts]
        tokens = np.array(codes, np.float32)[..., None] / 100
        return Text(tokens, tokens.mean(1), np.ones(tokens.shape[:2], bool))

    return encode


def load_named_sounds(split, data_dir):
    return replace(load_sounds(split, data_dir), captions=[("sine",), ("wave", "tone")] * 8)


def test_text_to_audio(tmp_path):
    """Prompts condition the transformer of sound, as they condition those of images."""
    condition = dict(
        name="Prompts",
        encoder=f"{__name__}.letter_codes",
        **dict(length=4, features=1, pooled_features=1, first_caption=0.5),
        **dict(prompts=("sine", "tone"), directory=str(tmp_path)),
    )
    network = dict(name="AudioDiT", patch_size=8, width=16, depth=1, num_heads=2)
    fields = dict(space=dict(name="Waveforms"), model=network, condition=condition)
    config = small("named_sounds", "audio", (64, 1), **fields)
    task, key = build(config), jax.random.key(0)
    batch = training_batches(config, task, make_mesh({"data": 1}, 4))[0]
    assert batch["audio"].shape == (4, 64, 1) and batch["tokens"].shape == (4, 4, 1)
    (frozen,) = task.frozen()
    state = jax.jit(task.init)(key)
    noisy = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(key, a.shape), state.params)
    generate = jax.jit(task.generate, static_argnames="weights")
    inputs = task.sampling_inputs(config.sampling)
    sample = lambda labels: generate(
        state.replace(params=noisy),
        key,
        jnp.array(labels),
        jnp.arange(2),
        *inputs,
        weights="params",
    )
    np.testing.assert_array_equal(sample([0, 1])[0], sample([0, 0])[0])
    assert not np.allclose(sample([0, 1])[1], sample([0, 0])[1], atol=1e-3)


def test_a_length_that_the_patches_do_not_divide_is_refused():
    network = dict(name="AudioDiT", patch_size=5, width=16, depth=1, num_heads=2)
    config = small("sounds", "audio", (64, 1), space=dict(name="Waveforms"), model=network)
    with pytest.raises(ValueError, match=r"\(64, 1\) does not divide into patches of 5"):
        build(config)
    config.data.image_shape = (64,)
    with pytest.raises(ValueError, match="needs 2 positive integers: samples, channels"):
        build(config)


def test_of_clips_with_sound_a_batch_has_the_feature_alone_and_options_reach_the_loader():
    config = base.diffusion("sounding", 1, name="sounding_digits", feature="audio")
    config.data.update(image_shape=(17_000, 1), train_split="train[:8]", options=dict())
    config.data.options.preload_bytes = 0
    config.update(space=dict(name="Waveforms"), batch_size=4)
    config.model = dict(name="AudioDiT", patch_size=100, width=8, depth=1, num_heads=1)
    batches = training_batches(config, build(config), make_mesh({"data": 1}, 4))
    assert isinstance(batches.dataset.source, OnDisk)
    batch = batches[0]
    assert set(batch) == {"audio", "index"} and batch["audio"].shape == (4, 17_000, 1)
    whole = load_dataset("sounding_digits", "train[:8]").source[batch["index"]]
    np.testing.assert_array_equal(batch["audio"], whole["audio"])
    config.data.options = dict(rate=8000)
    with pytest.raises(ValueError, match="'sounding_digits' takes no option 'rate'"):
        Data.from_config(config).train()


@pytest.mark.parametrize("flip", [False, True])
def test_frames_of_the_clip_itself_condition_the_network(flip):
    """The network returns the second frame: the clean clip's velocity against it is known."""
    fields = dict(
        model=dict(name=f"{__name__}.LastFrame"), condition=dict(name="Frames", count=2, num_rows=3)
    )
    config = small("clips", "video", (3, 4, 4, 1), **fields)
    config.data.flip = flip
    config.conditioning_dropout = 0.0
    config.target = dict(name="clean")
    task, key = build(config), jax.random.key(0)
    batch = Batches(load_clips("train", None), 4, 0)[0]
    (frozen,) = task.frozen()
    state = jax.jit(task.init)(key)
    _, metrics = jax.jit(task.update)(state, batch, key, frozen)
    clips = to_float(batch["video"])
    # Mirrored or not, a clip's frames are those of the clip that is learned.
    expected = np.mean((clips - clips[:, 1:2]) ** 2)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)

    held_out = to_float(load_clips("test", None).source[:3]["video"])
    labels = jnp.array([2, 0])
    samples = jax.jit(task.generate)(
        state, key, labels, labels, *task.sampling_inputs(config.sampling)
    )
    # Euler's last step ends in the prediction.
    np.testing.assert_allclose(
        samples, np.broadcast_to(held_out[[2, 0], 1:2], samples.shape), atol=1e-5
    )
    assert not np.any(task.condition.null(frozen))


def test_sounds_are_encoded_to_latents_in_batches():
    """`experiments.encode` writes what the autoencoder makes of int16 sound in [−1, 1)."""
    sounds = load_sounds("test", None)
    encoder = Encoder(partial(autoencoders.encode, Halves()), {}, batch_size=3)
    assert encoder.shape(sounds.source[0]["audio"]) == (32, 2)
    latents, labels = encoder(Examples(sounds, False, "audio"), range(8))
    pairs = sounds.source[:]["audio"].reshape(8, 32, 2) / 2**15
    expected = np.stack([pairs.mean(-1), (pairs[..., 0] - pairs[..., 1]) / 2], -1)
    np.testing.assert_allclose(latents, expected, atol=1e-6)
    assert labels.tolist() == [0] * 8
