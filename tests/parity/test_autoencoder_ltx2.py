"""LTX-2's autoencoder of video and its loader compared with diffusers'."""

import functools
import tempfile

import diffusers
import jax
import numpy as np
import pytest
import torch

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_ltx import AutoencoderLTX2, autoencoder_ltx_23
from genjax.nn.causal import apply_chunks
from genjax.pretrained.autoencoder_ltx import AUTOENCODER_LTX2

from .libraries import assert_opens, entries_of, with_entries

CHANNELS = 3
SHUFFLES = ["spatial", "temporal", "spatiotemporal"]
SHARED = dict(
    latent_channels=CHANNELS,
    patch_size=2,
    block_out_channels=[4, 8, 16],
    down_block_types=["LTX2VideoDownBlock3D"] * 3,
    spatio_temporal_scaling=[True] * 3,
    downsample_type=SHUFFLES,
    layers_per_block=[2, 1, 1, 1],
    spatial_compression_ratio=8,
    temporal_compression_ratio=4,
)
# As versions 2.0 and 2.3, with as few channels as the shapes allow.
CONFIGS = {
    "2.0": dict(
        decoder_block_out_channels=[8, 16],
        decoder_spatio_temporal_scaling=[True] * 2,
        decoder_layers_per_block=[1, 1, 2],
        decoder_inject_noise=[False] * 3,
        upsample_type=["spatiotemporal"] * 2,
        upsample_residual=[True] * 2,
        upsample_factor=[2] * 2,
        decoder_causal=False,
    ),
    "2.3": dict(
        decoder_block_out_channels=[8, 8, 16],
        decoder_spatio_temporal_scaling=[True] * 3,
        decoder_layers_per_block=[1, 2, 1, 1],
        decoder_inject_noise=[False] * 4,
        upsample_type=SHUFFLES[::-1],
        upsample_residual=[False] * 3,
        upsample_factor=[2, 1, 2],
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
    ),
}
CONFIGS["causal"] = CONFIGS["2.3"] | dict(
    decoder_causal=True,
    decoder_spatial_padding_mode="reflect",
    upsample_residual=[True, False, True],
    upsample_factor=[2, 1, 1],
    decoder_block_out_channels=[8, 8, 8],
)
LATENTS = {"2.0": (3, 2, 3), "2.3": (2, 1, 2), "causal": (5, 2, 3)}  # frames, height, width


@functools.cache
def pair(name):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLLTX2Video(**SHARED | CONFIGS[name]).eval()
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            if path.endswith(("bias", "norm3.weight")):
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


def to_torch(video):
    return torch.from_numpy(np.moveaxis(np.array(video), -1, 1))


def from_torch(video):
    return np.moveaxis(video.detach().numpy(), 1, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_agrees(name):
    theirs, module, variables = pair(name)
    latents = np.random.default_rng(0).standard_normal((2, *LATENTS[name], CHANNELS), np.float32)
    with torch.no_grad():
        expected = from_torch(theirs.decode(to_torch(latents)).sample)
    assert_close(
        jax.jit(functools.partial(module.apply, method="decode"))(variables, latents), expected
    )
    frames, height, width = LATENTS[name]
    assert expected.shape == (2, 4 * frames - 3, 8 * height, 8 * width, 3)
    np.testing.assert_array_equal(module.latent_mean, theirs.latents_mean)
    np.testing.assert_array_equal(module.latent_deviation, theirs.latents_std)


def test_encoding_agrees():
    theirs, module, variables = pair("2.3")
    video = np.random.default_rng(0).uniform(-1, 1, (2, 9, 24, 16, 3)).astype(np.float32)
    ours = jax.jit(functools.partial(module.apply, method="encode"))(variables, video)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(video)).latent_dist
    for each, expected in zip(ours, (posterior.mean, posterior.logvar), strict=True):
        assert each.shape == (2, 3, 3, 2, CHANNELS)
        assert_close(each, from_torch(expected))


def test_a_causal_decoder_decodes_chunk_by_chunk():
    """Each level has a stride of its own in time."""
    theirs, module, variables = pair("causal")
    latents = np.random.default_rng(0).standard_normal(
        (1, *LATENTS["causal"], CHANNELS), np.float32
    )
    chunked = jax.jit(functools.partial(apply_chunks, module, method="decode", size=2))
    with torch.no_grad():
        expected = from_torch(theirs.decode(to_torch(latents)).sample)
    assert_close(chunked(variables, latents), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, tmp_path):
    theirs, module, variables = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    assert entries_of(again) == entries_of(theirs)


# Number of parameters, of FIELD's table.
@pytest.mark.parametrize(
    ("build", "count"), [(AutoencoderLTX2, 1_222_479_601), (autoencoder_ltx_23, 726_105_969)]
)
def test_parameters(build, count):
    module = build()
    assert (module.factor, module.temporal_factor) == (32, 8)
    shapes = AUTOENCODER_LTX2.shapes(module, {})
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(upsample_type=["spatial"]), r"upsample_type=\['spatial'\] has 1 values; expected 3"),
        (
            dict(upsample_type=["spatial"] * 3),
            r"divides .* by \[4 4 4\], .* multiplies them by \[1 8 8\]",
        ),
        (dict(decoder_inject_noise=[True] * 4), "decoder_inject_noise=True is not supported"),
        (dict(timestep_conditioning=True), "timestep_conditioning=True is not supported"),
        (dict(downsample_type=["conv"] * 3), "downsample_type='conv' is not supported; only"),
    ],
)
def test_faults_are_named(entries, message, tmp_path):
    pair("2.3")[0].save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(tmp_path / "theirs", tmp_path / "ours", **entries))
