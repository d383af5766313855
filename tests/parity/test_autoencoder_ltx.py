"""LTX-Video's autoencoder and its loader compared with diffusers'."""

import functools
import tempfile

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_ltx import AutoencoderLTX
from genjax.nn.causal import apply_chunks
from genjax.pretrained.autoencoder_ltx import AUTOENCODER_LTX

from .libraries import assert_opens, entries_of, with_entries

CHANNELS = 3
SHUFFLED = dict(down_block_types=["LTXVideo095DownBlock3D"] * 3, block_out_channels=[4, 8, 8, 16])
TIMES = dict(timestep_conditioning=True, upsample_residual=[True] * 3, upsample_factor=[2] * 3)
# As versions 0.9.0, 0.9.1 and 0.9.5, with as few channels as the shapes allow.
CONFIGS = {
    "0.9.0": dict(
        block_out_channels=[4, 6, 8],
        down_block_types=["LTXVideoDownBlock3D"] * 3,
        spatio_temporal_scaling=[True, True, False],
        layers_per_block=[2, 1, 1, 1],
        downsample_type=["conv"] * 3,
        decoder_block_out_channels=[4, 6, 8],
        decoder_spatio_temporal_scaling=[True, True, False],
        decoder_layers_per_block=[2, 1, 1, 1],
        decoder_inject_noise=[False] * 4,
        upsample_residual=[False] * 3,
        upsample_factor=[1] * 3,
    ),
    "0.9.1": dict(
        block_out_channels=[4, 4, 6],
        down_block_types=["LTXVideoDownBlock3D"] * 3,
        spatio_temporal_scaling=[True] * 3,
        layers_per_block=[1] * 4,
        downsample_type=["conv"] * 3,
        decoder_block_out_channels=[8, 16, 32],
        decoder_spatio_temporal_scaling=[True] * 3,
        decoder_layers_per_block=[1, 2, 1, 1],
        decoder_inject_noise=[True, False, True, False],
    )
    | TIMES,
    "0.9.5": SHUFFLED
    | dict(
        spatio_temporal_scaling=[True, True, True],
        layers_per_block=[1, 1, 1, 1],
        downsample_type=["spatial", "temporal", "spatiotemporal"],
        decoder_block_out_channels=[8, 16],
        decoder_spatio_temporal_scaling=[True, True],
        decoder_layers_per_block=[1, 1, 2],
        decoder_inject_noise=[False] * 3,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    | {name: value[:2] if isinstance(value, list) else value for name, value in TIMES.items()},
}
CONFIGS["causal"] = CONFIGS["0.9.0"] | dict(decoder_causal=True)
# Frames, height and width of latents, and of videos where encoder and decoder have equal factors.
LATENTS = {"0.9.0": (3, 2, 3), "0.9.1": (2, 1, 2), "0.9.5": (3, 3, 2), "causal": (4, 2, 1)}


def build(config):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLLTXVideo(latent_channels=CHANNELS, patch_size=2, **config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("bias", "norm3.weight", "table", "per_channel_scale1")):
                parameter.add_(0.3 * torch.randn_like(parameter))
        theirs.latents_mean.normal_()
        theirs.latents_std.uniform_(0.5, 2)
    return theirs.eval()


@functools.cache
def pair(name):
    theirs = build(CONFIGS[name])
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


def without_noise(*args, **options):
    return torch.zeros(*args)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_agrees(name, monkeypatch):
    """Decoders that take a time get one of each example's own; none adds noise."""
    theirs, module, variables = pair(name)
    latents = np.random.default_rng(0).standard_normal((2, *LATENTS[name], CHANNELS), np.float32)
    t = np.array([0.05, 0.4], np.float32) if module.takes_time else None
    monkeypatch.setattr(torch, "randn", without_noise)
    given = () if t is None else (torch.from_numpy(t),)
    with torch.no_grad():
        expected = from_torch(theirs.decode(to_torch(latents), *given).sample)
    decode = jax.jit(functools.partial(module.apply, method="decode"))
    assert_close(decode(variables, latents, t), expected)
    np.testing.assert_array_equal(module.latent_mean, theirs.latents_mean)
    np.testing.assert_array_equal(module.latent_deviation, theirs.latents_std)
    if t is not None:
        assert np.abs(decode(variables, latents, t[::-1]) - expected).max() > 1e-3
        unnoised = (torch.zeros(2),)
        with torch.no_grad():
            expected = from_torch(theirs.decode(to_torch(latents), *unnoised).sample)
        assert_close(decode(variables, latents, None), expected)


@pytest.mark.parametrize("name", ["0.9.0", "0.9.5"])
def test_encoding_agrees(name):
    theirs, module, variables = pair(name)
    frames = 1 + 2 * module.temporal_factor
    size = (frames, 3 * module.factor, 2 * module.factor)
    video = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    ours = jax.jit(functools.partial(module.apply, method="encode"))(variables, video)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(video)).latent_dist
    for each, expected in zip(ours, (posterior.mean, posterior.logvar), strict=True):
        assert each.shape == (2, 3, 3, 2, CHANNELS)
        assert_close(each, from_torch(expected))
    with pytest.raises(ValueError, match=f"got {frames - 1} frames of"):
        module.apply(variables, jnp.asarray(video[:, 1:]), method="encode")


def test_a_causal_decoder_decodes_chunk_by_chunk():
    _, module, variables = pair("causal")
    latents = np.random.default_rng(0).standard_normal((1, 5, 2, 1, CHANNELS), np.float32)
    whole = jax.jit(functools.partial(module.apply, method="decode"))(variables, latents)
    chunked = jax.jit(functools.partial(apply_chunks, module, method="decode", size=2))
    assert_close(chunked(variables, latents), np.asarray(whole))


def test_noise_is_one_for_all_videos_and_needs_a_key():
    _, module, variables = pair("0.9.1")
    latents = jnp.ones((2, 2, 1, 2, CHANNELS))

    @jax.jit
    def decode(variables, **rngs):
        return module.apply(variables, latents, method="decode", rngs=rngs)

    with_noise = decode(variables, noise=jax.random.key(0))
    assert np.abs(with_noise - decode(variables)).max() > 1e-2
    np.testing.assert_allclose(with_noise[0], with_noise[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, tmp_path):
    theirs, module, variables = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    factors = dict(
        spatial_compression_ratio=module.factor, temporal_compression_ratio=module.temporal_factor
    )
    assert entries_of(again) == entries_of(theirs) | factors


PUBLISHED_SIZES = {  # number of parameters, of FIELD's table
    "0.9.0": ({}, 419_193_649),
    "0.9.1": (
        dict(
            decoder_block_out_channels=[256, 512, 1024],
            decoder_spatio_temporal_scaling=[True] * 3,
            decoder_layers_per_block=[5, 6, 7, 8],
            decoder_inject_noise=[True, True, True, False],
        )
        | TIMES,
        934_976_434,
    ),
    "0.9.5": (
        dict(
            block_out_channels=[128, 256, 512, 1024, 2048],
            down_block_types=["LTXVideo095DownBlock3D"] * 4,
            spatio_temporal_scaling=[True] * 4,
            layers_per_block=[4, 6, 6, 2, 2],
            downsample_type=["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            decoder_block_out_channels=[256, 512, 1024],
            decoder_spatio_temporal_scaling=[True] * 3,
            decoder_layers_per_block=[5, 5, 5, 5],
            decoder_inject_noise=[False] * 4,
        )
        | TIMES,
        1_246_913_522,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_parameters(name):
    entries, count = PUBLISHED_SIZES[name]
    module = AUTOENCODER_LTX.make(AUTOENCODER_LTX.complete(entries))
    assert isinstance(module, AutoencoderLTX) and module.factor == 32
    shapes = AUTOENCODER_LTX.shapes(module, {})
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ltx")
    build(CONFIGS["0.9.0"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(upsample_factor=[1]), r"upsample_factor=\[1\] has 1 values; expected 3"),
        (
            dict(decoder_spatio_temporal_scaling=[True] * 3),
            r"divides .* by \[4 4 4\], .* by \[8 8 8\]",
        ),
        (dict(scaling_factor=2.0), "scaling_factor=2.0 is not supported; only 1.0"),
        (dict(down_block_types=["Down"] * 3), "down_block_types='Down' is not supported; only"),
        (dict(rotary=1), r"entries that are not known here: {'rotary': 1}"),
    ],
)
def test_faults_are_named(folder, tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **entries))
