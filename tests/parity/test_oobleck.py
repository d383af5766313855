"""Stable Audio Open's autoencoder and its loader compared with diffusers'."""

import functools
import tempfile

import diffusers
import jax
import numpy as np
import pytest
import torch

from genjax import pretrained
from genjax.pretrained.oobleck import OOBLECK

from .libraries import assert_opens, entries_of, with_entries

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
CONFIGS = {
    "stereo": dict(
        encoder_hidden_size=8,
        decoder_channels=6,
        decoder_input_channels=4,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
    ),
    "mono": dict(
        encoder_hidden_size=6,
        decoder_channels=4,
        decoder_input_channels=3,
        downsampling_ratios=[2, 4, 8],
        channel_multiples=[2, 1, 3],
        audio_channels=1,
        sampling_rate=8000,
    ),
}


@functools.cache
def pair(name):
    """Return diffusers' network, with weights that keep activations in scale, and ours."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderOobleck(**CONFIGS[name]).eval()
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            if path.endswith(("alpha", "beta", "bias")):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            if path.endswith("weight_g"):
                parameter.mul_(0.5 + torch.rand_like(parameter))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, *pretrained.load(folder)


def assert_close(ours, theirs):
    # float32 on both sides, some twenty layers; measured 2e-6 of the largest value.
    assert ours.shape == theirs.shape and theirs.std() > 0.02
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_agrees_at_lengths_that_the_factor_does_not_divide(name):
    theirs, module, variables = pair(name)
    samples = 5 * module.factor + module.factor // 2 + 1
    shape = (2, samples, module.audio_channels)
    waveform = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(waveform.swapaxes(1, 2))).latent_dist
    ours = jax.jit(functools.partial(module.apply, method="encode"))(variables, waveform)
    for each, expected in zip(ours, (posterior.mean, posterior.logvar), strict=True):
        assert each.shape == (2, 5, module.latent_channels)
        assert_close(each, expected.numpy().swapaxes(1, 2))


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_agrees(name):
    theirs, module, variables = pair(name)
    shape = (2, 5, module.latent_channels)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents.swapaxes(1, 2))).sample
    ours = jax.jit(functools.partial(module.apply, method="decode"))(variables, latents)
    assert ours.shape == (2, 5 * module.factor, module.audio_channels)
    assert_close(ours, expected.numpy().swapaxes(1, 2))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, tmp_path):
    """Directions and gains are written bitwise, not their product."""
    theirs, module, variables = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    assert entries_of(again) == entries_of(theirs)


def test_parameters():
    module = OOBLECK.make(OOBLECK.complete({}))
    params = OOBLECK.shapes(module, {})["params"]
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (size(params), size(params["encoder"])) == (156_112_514, 77_989_888)
    gains = [a for path, a in jax.tree.leaves_with_path(params) if path[-1].key == "gain"]
    assert (size(params["decoder"]), size(gains)) == (78_122_626, 34_818)
    assert (module.factor, module.sample_rate / module.factor) == (2048, 21.533203125)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(encoder_hidden_size=10), "encoder_hidden_size=10 is not supported; only 8"),
        (dict(downsampling_ratios=[3, 4]), r"strides are even numbers, .* got \(3, 4\)"),
        (dict(channel_multiples=[1]), r"one for each of multiples=\(1,\)"),
    ],
)
def test_faults_are_named(tmp_path, entries, message):
    theirs, _, _ = pair("stereo")
    (tmp_path / "saved").mkdir()
    (tmp_path / "other").mkdir()
    theirs.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(tmp_path / "saved", tmp_path / "other", **entries))
