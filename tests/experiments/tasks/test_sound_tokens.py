"""Codes of a codec of sound as tokens: by hand, and in the tasks of transformers of codes."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.inputs import autoencoders
from genjax.data import Batches, Dataset, InMemory
from genjax.nn.quantizers import Quantized
from genjax.training.sampling import sample

SAMPLES, CODES = 24, 8


def load(split, data_dir):
    """Ramps of 24 samples in int16."""
    starts = np.linspace(-9000, 9000, {"train": 16, "test": 8}[split])
    ramps = starts[:, None, None] + 400 * np.arange(SAMPLES)[:, None]
    return Dataset("ramps", split, InMemory({"audio": ramps.astype(np.int16)}))


class Codec(nn.Module):
    """The mean of four samples in [−1, 1) as two octal digits, the second finer than the first."""

    factor = 4
    quantizer = SimpleNamespace(num_codes=CODES, num_levels=2)

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return x.reshape(len(x), -1, 4).mean(2, keepdims=True)

    def quantize(self, z, train=False):
        digits = jnp.floor((z + 1) * 32).astype(jnp.int32)
        indices = jnp.concatenate([digits // 8, digits % 8], axis=-1)
        return Quantized(z, indices, {})

    def decode(self, z):
        return jnp.repeat(z, 4, axis=1)

    def decode_indices(self, indices):
        return self.decode(((8 * indices[..., :1] + indices[..., 1:] + 0.5) / 32) - 1)


@pytest.fixture(autouse=True)
def codec(monkeypatch):
    monkeypatch.setattr(autoencoders, "_published", lambda folder: (Codec(), {}))


def config(task):
    data = dict(name=f"{__name__}.load", feature="audio", image_shape=(SAMPLES, 1))
    config = base.tokens("ramps", task, 1, **data, sample_rate=8000)
    config.space.published = "codec"
    network = "MaskGIT" if task == "MaskedTokens" else "LlamaGen"
    config.model = dict(name=network, width=16, depth=1, num_heads=2)
    config.batch_size, config.num_steps = 4, 10
    config.sampling.update(temperature=1.0)
    if task == "MaskedTokens":
        config.sampling.num_steps = 3
    return config


def test_codes_are_frames_of_levels_and_masked_frames_are_silent():
    space = build(config("TokenAutoregression")).space
    assert space.shape == (6, 2) and space.vocabulary == 2 * CODES and space.sample_rate == 8000
    assert space.abstract_batch()["audio"] == jax.ShapeDtypeStruct((SAMPLES, 1), jnp.int16)
    sounds, frozen = load("test", None).source[:]["audio"], space.frozen()
    means = sounds.reshape(8, 6, 4).mean(2) / 2**15
    octal = np.array([[[int(d) for d in f"{int((m + 1) * 32):02o}"] for m in r] for r in means])
    codes = space.encode(jnp.asarray(sounds), frozen)
    # A level's codes are tokens of its own, as the digit 3 means another sound in the second level.
    np.testing.assert_array_equal(codes, octal + np.array([0, CODES]))
    assert space.encode(codes, frozen) is codes  # those that experiments.encode wrote
    assert space.layout.grid == (6, 2)
    np.testing.assert_array_equal(space.layout.sequence(codes)[0, :4], codes[0, :2].reshape(-1))
    decoded = space.decode(codes, frozen)
    assert decoded.shape == sounds.shape
    assert np.abs(decoded - np.repeat(means, 4, axis=1)[..., None]).max() <= 0.5 / 32 + 1e-6
    np.testing.assert_array_equal(space.decode(jnp.asarray(octal), frozen), decoded)
    hidden = space.decode(codes.at[:, 3, 1].set(2 * CODES), frozen)
    assert not np.any(hidden[:, 12:16]) and np.all(hidden[:, :12] == decoded[:, :12])
    np.testing.assert_array_equal(hidden[:, 16:], decoded[:, 16:])
    assert space.to_data(decoded).dtype == jnp.int16


@pytest.mark.parametrize("name", ["TokenAutoregression", "MaskedTokens"])
def test_transformers_of_codes_train_and_sample(name):
    fields = config(name)
    task, key = build(fields), jax.random.key(0)
    batch, (frozen,) = Batches(load("train", None), 4, 0)[0], task.frozen()
    state, update = jax.jit(task.init)(key), jax.jit(task.update)
    losses = []
    for _ in range(4):
        state, metrics = update(state, batch, key, frozen)
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - np.log(2 * CODES)) < 0.6  # of codes that are equally likely at first
    assert losses[3] < losses[0]  # one key, so one loss, which falls
    sounds = sample(task, state, np.zeros(3, int), fields.sampling)
    assert sounds.shape == (3, SAMPLES, 1) and sounds.dtype == np.int16
    # Every sample is one of the 64 levels.
    levels = (sounds / 2**15 + 1) * 32 - 0.5
    assert np.abs(levels - np.rint(levels)).max() < 0.01
