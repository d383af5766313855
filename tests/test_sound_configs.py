"""Configs of sound: published recipes, a narrowed step of each, and bitrates."""

import jax
import numpy as np
import pytest

from configs import sound_autoencoder
from experiments.configuration.runs import build
from experiments.inputs.datasets import abstract_batch

NARROW = {
    "stable_audio": dict(width=2, decoder_width=2, latent_channels=2),
    "dac": dict(width=2, decoder_width=16),
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
    config.adversary.start_step, config.batch_size = 0, 2
    config.data.image_shape = (4096, config.data.image_shape[1])
    return config


@pytest.mark.training
@pytest.mark.parametrize("choice", NARROW)
def test_a_step_of_the_published_recipes_runs_narrowed(choice):
    config = narrowed(choice)
    task = build(config)
    batch = {
        name: np.random.default_rng(0).integers(-(2**12), 2**12, a.shape).astype(a.dtype)
        for name, a in abstract_batch(config, task).items()
    }
    state = jax.jit(task.init)(jax.random.key(0))
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
    weights = np.array(
        [config.adversary.weight, config.weights.commitment, config.weights.codebook]
    )
    np.testing.assert_allclose(15 * weights, [1, 0.25, 1])
    assert config.adversary.feature_matching == 2 and config.reconstruction.name.endswith("mel")
    assert config.optimizer.autoencoder.learning_rate == 1e-4 and config.batch_size == 72
