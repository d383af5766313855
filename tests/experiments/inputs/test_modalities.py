"""Sound as a space and frames as a condition, in the diffusion task, with own networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import base
from experiments.configuration.runs import build
from genjax.data import Batches, Dataset, InMemory, to_float


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
    assert drawn.size == (440, 176)  # two columns of 2 inches and two rows of 0.8, at 110 dots


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
