from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.inputs import autoencoders
from experiments.inputs.autoencoders import FrozenAutoencoder
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.nn import chunking


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


def test_an_autoencoder_that_was_not_trained_is_named_with_its_field():
    with pytest.raises(FileNotFoundError, match="space.run names .*nowhere, .*; train the autoenc"):
        FrozenAutoencoder.open("nowhere", "ema", None)


def test_a_run_that_has_not_measured_its_latents_says_what_to_do(monkeypatch):
    run = SimpleNamespace(report={"psnr": 20.0})
    monkeypatch.setattr(autoencoders, "open_run", lambda folder, weights: run)
    with pytest.raises(ValueError, match="report of runs/a has no latent_mean and no latent_devi"):
        FrozenAutoencoder(Same(), "runs/a", "ema", None, None).load()


def test_published_weights_of_no_autoencoder_are_named(monkeypatch):
    monkeypatch.setattr(autoencoders, "_published", lambda folder: (nn.Dense(1), {}))
    with pytest.raises(ValueError, match=r"space.published is weights/, the weights of a Dense, w"):
        FrozenAutoencoder.open(None, "ema", "weights/")


def test_long_clips_are_encoded_and_decoded_in_chunks(monkeypatch):
    """In programs with a loop over four latent frames; shorter ones have no loop."""
    network = AutoencoderWan(2, widths=(4, 4), blocks=1, temporal_downsample=(True,))
    autoencoder, shape = FrozenAutoencoder(network, "run", "ema", None, None), (9, 4, 4, 3)
    frozen, x = autoencoder.abstract(shape), jax.ShapeDtypeStruct((1, *shape), np.float32)

    def loops():
        encode, decode = (
            lambda *inputs: autoencoder.encode(*inputs),
            lambda *inputs: autoencoder.decode(*inputs),
        )
        programs = (
            jax.make_jaxpr(encode)(frozen, x),
            jax.make_jaxpr(decode)(frozen, jax.eval_shape(encode, frozen, x)),
        )
        return [
            [each.params["length"] for each in program.eqns if each.primitive.name == "scan"]
            for program in programs
        ]

    assert loops() == [[], []]
    monkeypatch.setattr(chunking, "PLACES", 1)
    assert loops() == [[4], [4]]
