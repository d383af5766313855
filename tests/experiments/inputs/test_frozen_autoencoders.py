from types import SimpleNamespace

import numpy as np
from flax import linen as nn

from experiments.inputs import autoencoders
from experiments.inputs.autoencoders import FrozenAutoencoder


class Same(nn.Module):
    """Latents are the data."""

    factor: int = 1

    def encode(self, x):
        return x

    def decode(self, latents):
        return latents


def test_a_channel_that_never_changes_is_0_and_comes_back(monkeypatch):
    report = {"latent_mean": [0.25, 1.0], "latent_deviation": [0.0, 2.0]}
    run = SimpleNamespace(report=report, variables={})
    monkeypatch.setattr(autoencoders, "open_run", lambda folder, weights: run)
    monkeypatch.setattr(autoencoders, "_of_run", lambda folder, weights: run.variables)
    autoencoder = FrozenAutoencoder(Same(), "run", "ema", None, None)
    frozen, x = autoencoder.load(), np.float32([[0.25, 5.0], [0.25, -1.0]])
    latents = autoencoder.encode(frozen, x)
    np.testing.assert_array_equal(latents, [[0, 2], [0, -1]])
    np.testing.assert_array_equal(autoencoder.decode(frozen, latents), x)
