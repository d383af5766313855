"""LTX-2's autoencoder of sound and its loader compared with diffusers'."""

import functools
import tempfile

import diffusers
import jax
import numpy as np
import pytest
import torch

from genjax import pretrained
from genjax.pretrained.autoencoder_ltx_audio import AUTOENCODER_LTX_AUDIO

from .libraries import assert_opens, entries_of, with_entries

BINS = 12
SIZES = dict(base_channels=6, ch_mult=[1, 2, 3], num_res_blocks=2, latent_channels=2, mel_bins=BINS)


@functools.cache
def pair():
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLLTX2Audio(**SIZES).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
        theirs.latents_mean.normal_()
        theirs.latents_std.uniform_(0.5, 2)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, *pretrained.load(folder)


def assert_close(ours, theirs):
    # float32 on both sides: some thirty layers, each rounded by about 1e-7.
    assert ours.shape == theirs.shape and theirs.std() > 0.02
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def to_torch(x):
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 1))


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize("frames", [9, 7, 2])
def test_encoding_agrees_for_any_number_of_frames(frames):
    theirs, module, variables = pair()
    sound = np.random.default_rng(0).standard_normal((2, frames, BINS, 2), np.float32)
    ours = jax.jit(functools.partial(module.apply, method="encode"))(variables, sound)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(sound)).latent_dist
    for each, expected in zip(ours, (posterior.mean, posterior.logvar), strict=True):
        assert_close(each, from_torch(expected))


@pytest.mark.parametrize("frames", [3, 1])
def test_decoding_agrees(frames):
    theirs, module, variables = pair()
    latents = np.random.default_rng(0).standard_normal((2, frames, BINS // 4, 2), np.float32)
    ours = jax.jit(functools.partial(module.apply, method="decode"))(variables, latents)
    with torch.no_grad():
        expected = from_torch(theirs.decode(to_torch(latents)).sample)
    assert_close(ours, expected)
    assert expected.shape[1] == 4 * frames - 3
    np.testing.assert_array_equal(module.latent_mean, theirs.latents_mean)
    np.testing.assert_array_equal(module.latent_deviation, theirs.latents_std)


def test_what_is_saved_opens_in_diffusers(tmp_path):
    theirs, module, variables = pair()
    again = assert_opens(theirs, module, variables, tmp_path)
    assert entries_of(again) == entries_of(theirs)


def test_published_parameters_are_diffusers():
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLLTX2Audio()
    module = AUTOENCODER_LTX_AUDIO.make(AUTOENCODER_LTX_AUDIO.complete({}))
    params = AUTOENCODER_LTX_AUDIO.shapes(module, {})["params"]
    for side in ("encoder", "decoder"):
        count = sum(parameter.numel() for parameter in getattr(theirs, side).parameters())
        assert sum(leaf.size for leaf in jax.tree.leaves(params[side])) == count


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(norm_type="group"), "norm_type='group' is not supported; only 'pixel'"),
        (dict(ch_mult=[1, 2]), r"ch_mult=\[1, 2\] has 2 levels, not 3"),
        (dict(mel_bins=16), "base_channels=6 moments for latent frames of 8 numbers"),
        (dict(output_channels=1), "output_channels=1 is not supported; only 2"),
    ],
)
def test_faults_are_named(entries, message, tmp_path):
    theirs, *_ = pair()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(tmp_path / "theirs", tmp_path / "ours", **entries))
