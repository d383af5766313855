"""The config of text to audio at toy size, on latents of a small published autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import text_to_audio
from experiments.configuration.kinds import EVALUATOR
from experiments.configuration.runs import build
from experiments.evaluation.context import Context
from experiments.evaluation.sounds import SoundDistance
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data, training_batches
from genjax import pretrained
from genjax.data import Dataset, InMemory
from genjax.devices import make_mesh
from genjax.models.autoencoders.oobleck import AutoencoderOobleck
from genjax.training.sampling import sample

SAMPLES, FACTOR, RATE = 96, 8, 100


def load(split: str, data_dir: str, sample_rate: int) -> Dataset:
    """Return captioned stereo tones at the rate that the config's options say."""
    pitches = np.arange(1, 25)[:, None, None]
    times = np.arange(SAMPLES)[:, None] / sample_rate + np.array([0.0, 0.1])
    audio = (2**14 * np.sin(2 * np.pi * pitches * times)).astype(np.int16)
    captions = [(f"a tone of {pitch} hertz",) for pitch in range(1, 25)]
    return Dataset("tones", split, InMemory({"audio": audio}), captions=captions)


def states(self, prompts: list[str]) -> list[dict[str, np.ndarray]]:
    """Return states of five tokens that depend on the prompt, and its timing's."""
    tokens = [np.outer(np.arange(1.0, 6), np.arange(6)) + len(prompt) for prompt in prompts]
    return [dict(tokens=np.sin(a), pooled=np.cos(a[0, :4])) for a in tokens]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(Prompts, "_encode", states)
    autoencoder = AutoencoderOobleck(
        latent_channels=3, width=6, decoder_width=4, multiples=(1, 2), strides=(2, 4)
    )
    variables = jax.jit(autoencoder.init)(jax.random.key(0), jnp.zeros((1, SAMPLES, 2)))
    pretrained.save(tmp_path / "vae", autoencoder, variables)
    config = text_to_audio.get_config()
    config.data.update(name=f"{__name__}.load", directory="", image_shape=(SAMPLES, 2))
    config.data.sample_rate, config.data.options = RATE, dict(sample_rate=RATE)
    config.condition.update(directory=f"{tmp_path}/prompts", encoder="words", length=5)
    config.condition.update(features=6, pooled_features=4)
    config.space = dict(name="Latents", published=f"{tmp_path}/vae")
    sizes = dict(width=16, depth=1, num_heads=2, num_kv_heads=1, text_width=8, time_features=4)
    config.model.update(unroll=1, **sizes)
    config.batch_size = 4
    config.optimizer.warmup = 0.0  # a first step at the full rate
    config.averages.ema.steps = 1.0
    config.sampling.update(num_steps=2, per_class=1, every=0)
    return config


def test_sounds_are_measured():
    """Not by pictures, which the training of the default config would end with."""
    config = text_to_audio.get_config()
    context = Context(Data.from_config(config), None, None, 100)
    (measure,) = config.evaluation.measures.values()
    assert isinstance(EVALUATOR.bind(measure, "measures", context=context), SoundDistance)


@pytest.mark.slow
def test_text_to_audio_takes_a_step_and_samples(config):
    task = build(config)
    batch = training_batches(config, task, make_mesh({"data": 1}, 4))[0]
    assert batch["audio"].shape == (4, SAMPLES, 2) and batch["pooled"].shape == (4, 4)
    assert task.space.shape == (SAMPLES // FACTOR, 3)
    frozen, key = task.frozen(), jax.random.key(0)
    state = jax.jit(task.init)(key)
    after, metrics = jax.jit(task.update)(state, batch, key, *frozen)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    samples = sample(task, after, np.arange(3), config.sampling)
    assert samples.shape == (3, SAMPLES, 2) and samples.dtype == np.int16
