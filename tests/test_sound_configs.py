"""Configs of sound: published recipes, a narrowed step of each, and bitrates."""

import jax
import numpy as np
import pytest

from configs import sound_and_video, sound_autoencoder
from experiments.configuration.runs import build
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import abstract_batch, training_batches
from experiments.launch.sampling import save_sheet
from genjax import adversarial
from genjax.data import Dataset, InMemory
from genjax.devices import make_mesh
from genjax.training.sampling import sample
from tests.drawn_state import drawn_state

NARROW = {
    "stable_audio": dict(
        width=2, decoder_width=2, latent_channels=2, multiples=(1, 2), strides=(4, 8)
    ),
    "dac": dict(width=2, decoder_width=8, strides=(4, 8)),
}


def narrowed(choice):
    config = sound_autoencoder.get_config(choice)
    config.unlock()
    config.model.update(NARROW[choice])
    if "quantizer" in config.model:
        config.model.quantizer.update(num_codes=8, features=4, width=2, num_levels=2)
    network = config.adversary.network
    network.width, network.period_widths = 2, (2, 2)
    network.n_ffts, network.periods = (512,), network.get("periods", (3,))[:1]
    if "bands" in network:
        network.bands = (0.0, 0.25, 1.0)
    distance = config.reconstruction
    distance.n_ffts = (256, 64)
    if distance.name == "multi_scale_mel":
        distance.num_mels = (40, 10)
    config.adversary.start_step, config.batch_size = 0, 2
    config.data.image_shape = (4096, config.data.image_shape[1])
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("empty_memory")
@pytest.mark.parametrize("choice", NARROW)
def test_a_step_of_the_published_recipes_runs_narrowed(choice):
    config = narrowed(choice)
    task = build(config)
    batch = {
        name: np.random.default_rng(0).integers(-(2**12), 2**12, a.shape).astype(a.dtype)
        for name, a in abstract_batch(config, task).items()
    }
    state = drawn_state(task)
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    assert all(np.isfinite(value).all() for value in metrics.values())
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9


def test_the_codecs_say_their_bitrates():
    def network(choice):
        config = sound_autoencoder.get_config(choice)
        config.adversary.weight = 0.0
        return build(config).network

    small, published = network("codec"), network("dac")
    assert small.bitrate == 2000 and small.frame_rate == 62.5
    assert published.bitrate == pytest.approx(7751.953, abs=1e-3)


def test_weights_are_the_authors():
    """DAC: mel 15, adversarial 1, feature matching 2, commitment ¼, codebook 1."""
    config = sound_autoencoder.get_config("dac")
    adversary, weights = config.adversary, config.weights
    matching = adversary.weight * adversary.feature_matching
    relative = np.array([matching, weights.commitment, weights.codebook])
    np.testing.assert_allclose(15 * relative, [2, 0.25, 1])
    fake = np.array([-1.0, 0.25, 3.0])
    loss = getattr(adversarial, adversary.objective).generator(None, fake)
    np.testing.assert_allclose(15 * adversary.weight * loss, (1 - fake) ** 2, rtol=1e-6)
    assert config.reconstruction.name.endswith("mel")
    assert config.optimizer.autoencoder.learning_rate == 1e-4 and config.batch_size == 72
    # The authors clip gradients of 15 and of 2 times these losses, at 1,000 and at 10.
    norms = [config.optimizer[player].clip_norm for player in ("autoencoder", "discriminator")]
    np.testing.assert_allclose(norms, [1000 / 15, 10 / 2])


def test_stable_audio_matches_features_as_its_authors():
    """The adversarial loss is a mean over 5 parts; 5 times feature matching, over 5 layers too."""
    config = sound_autoencoder.get_config("stable_audio")
    adversary = config.adversary
    assert all(player.clip_norm is None for player in config.optimizer.values())
    matching = adversary.weight * adversary.feature_matching
    np.testing.assert_allclose([adversary.weight, matching], [0.1 / 5, 5 / (5 * 5)])


def load(split: str) -> Dataset:
    """Return latents of captioned clips with sound."""
    random = np.random.default_rng(len(split))
    shapes = {"video": (8, 2, 2, 4, 4), "audio": (8, 5, 4)}
    latents = {n: random.standard_normal(shape, np.float32) for n, shape in shapes.items()}
    captions = [(f"clip {i}",) for i in range(8)]
    return Dataset("latents", split, InMemory(latents), captions=captions)


@pytest.mark.slow
@pytest.mark.usefixtures("empty_memory")
@pytest.mark.parametrize("choice", sound_and_video.CHOICES)
def test_ltx_2_takes_a_step_on_latents_and_samples(choice, tmp_path, monkeypatch):
    widths = dict(width=16, audio_width=8)
    features = 24 if choice == "ltx_2_3" else 12
    states = lambda self, prompts: [
        dict(tokens=np.sin(np.outer(np.arange(1.0, 4), np.arange(features))), pooled=np.zeros(0))
        for _ in prompts
    ]
    monkeypatch.setattr(Prompts, "_encode", states)
    config = sound_and_video.get_config(choice)
    config.data.update(name=f"{__name__}.load", image_shape=(2, 2, 4, 4), sound_shape=(5, 4))
    config.condition.update(length=3, features=features)
    config.condition.update(directory=f"{tmp_path}/prompts", encoder="words")
    config.model.update(depth=2, num_heads=2, **widths)
    config.batch_size, config.optimizer.warmup, config.averages.ema.steps = 4, 0.0, 1.0
    config.sampling.num_steps = 2
    task = build(config)
    batch = training_batches(config, task, make_mesh({"data": 1}, 4))[0]
    (frozen,), key = task.frozen(), jax.random.key(0)
    state = drawn_state(task)
    after, metrics = jax.jit(task.update)(state, batch, key, frozen)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert moved["video_head"]["kernel"] and moved["audio_head"]["kernel"]
    if choice == "ltx_2_0":
        return  # samples are drawn alike
    samples = sample(task, after, np.arange(3), config.sampling)
    assert {n: a.shape for n, a in samples.items()} == {
        "video": (3, 2, 2, 4, 4),
        "sound": (3, 5, 4),
    }
    sheet = save_sheet(tmp_path / "sheet.png", task.space, samples, np.arange(3), 1, ())
    assert sheet.size[0] >= 8 and len(list(tmp_path.glob("sheet*"))) == 1
