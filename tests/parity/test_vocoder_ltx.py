"""LTX-2's vocoders and their loader compared with diffusers'."""

import functools
import tempfile

import jax
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.vocoder import (
    LTX2Vocoder,
    LTX2VocoderWithBWE,
    UpSample1d,
    kaiser_sinc_filter1d,
)

from genjax import pretrained
from genjax.models.autoencoders.vocoder_ltx import hann_interpolation, kaiser_low_pass

from .libraries import assert_opens, entries_of, with_entries

BINS = 3
SIZES = dict(in_channels=2 * BINS, hidden_channels=8, upsample_kernel_sizes=[7, 4])
SIZES |= dict(upsample_factors=[3, 2], resnet_kernel_sizes=[3, 5])
SIZES |= dict(resnet_dilations=[[1, 2], [1, 3]])
SNAKE = dict(act_fn="snakebeta", antialias=True)
MODELS = {
    "leaky": (LTX2Vocoder, {}),
    "snake": (LTX2Vocoder, SNAKE | dict(final_act_fn="clamp", final_bias=False)),
    "extended": (
        LTX2VocoderWithBWE,
        {f"bwe_{name}": value for name, value in SIZES.items()}
        | dict(filter_length=8, window_length=8, hop_length=2, num_mel_channels=BINS),
    ),
}


@functools.cache
def pair(name):
    kind, entries = MODELS[name]
    torch.manual_seed(0)
    theirs = kind(**SIZES | entries).eval()
    with torch.no_grad():
        for path, tensor in theirs.state_dict().items():
            if path.endswith(("bias", "alpha", "beta", "filter")):
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif path.endswith(("forward_basis", "mel_basis")):
                tensor.copy_(torch.rand_like(tensor) - 0.3 * ("forward" in path))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, *pretrained.load(folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("frames", [7, 1])
def test_waveforms_agree(name, frames):
    theirs, module, variables = pair(name)
    spectrogram = np.random.default_rng(0).standard_normal((2, frames, BINS, 2), np.float32)
    ours = jax.jit(module.apply)(variables, spectrogram)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(spectrogram).permute(0, 3, 1, 2)).mT.numpy()
    assert ours.shape == expected.shape and expected.std() > 0.02
    # float32 on both sides: some thirty layers, each rounded by about 1e-7.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if name != "leaky":
        assert np.abs(expected).max() <= 1 and np.mean(np.abs(expected) < 1) > 0.5


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_opens_in_diffusers(name, tmp_path):
    theirs, module, variables = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    assert entries_of(again) == entries_of(theirs)


def test_filters_are_those_of_diffusers():
    np.testing.assert_allclose(kaiser_low_pass(), kaiser_sinc_filter1d(0.25, 0.3, 12), atol=1e-7)
    theirs = UpSample1d(3, window_type="hann").filter.reshape(-1)
    np.testing.assert_allclose(hann_interpolation(3), theirs, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("leaky", dict(antialias=True), "antialias=True is not supported; only False"),
        ("leaky", dict(act_fn="snake"), "act_fn='snake' is not supported; only 'leaky_relu'"),
        ("leaky", dict(upsample_factors=[3]), "other lengths: .*'upsample_factors': 1"),
        ("leaky", dict(in_channels=7), "in_channels=7, out_channels=2: every channel"),
        ("extended", dict(window_length=6), "window_length=6 is not supported; only 8"),
        ("extended", dict(hop_length=4), r"multiply by 6; expected hop_length=4 times a whole"),
    ],
)
def test_faults_are_named(name, entries, message, tmp_path):
    pair(name)[0].save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(tmp_path / "theirs", tmp_path / "ours", **entries))
