"""Wan's autoencoder and its loader compared with diffusers', which runs chunk by chunk."""

import functools
import tempfile

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from genjax import pretrained
from genjax.nn.causal import apply_chunk
from genjax.pretrained.autoencoder_wan import AUTOENCODER_WAN
from genjax.pretrained.variables import variable_path

from .libraries import assert_opens, entries_of, with_entries

# diffusers' chunks have four frames, so they allow at most two halvings.
CONFIGS = {
    "published pattern": dict(
        dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True], num_res_blocks=1
    ),
    "halvings apart": dict(
        dim_mult=[1, 1, 2, 3], temperal_downsample=[True, False, True], num_res_blocks=2, base_dim=4
    ),
    "one halving": dict(dim_mult=[1, 2], temperal_downsample=[True], num_res_blocks=1),
    "frames kept": dict(
        dim_mult=[1, 1], temperal_downsample=[False], num_res_blocks=2, in_channels=1, z_dim=2
    ),
    "Wan 2.2": dict(
        dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True], num_res_blocks=1
    )
    | dict(is_residual=True, patch_size=2, in_channels=12, base_dim=4, decoder_base_dim=6),
}
SIZES = {  # frames, height, width
    "published pattern": (13, 24, 16),
    "halvings apart": (9, 16, 24),
    "one halving": (5, 6, 10),
    "frames kept": (5, 6, 4),
    "Wan 2.2": (9, 32, 16),
}


def build(base_dim=6, z_dim=3, in_channels=3, **options):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=z_dim,
        in_channels=in_channels,
        out_channels=in_channels,
        latents_mean=[0.1 * i for i in range(z_dim)],
        latents_std=[1.0 + i for i in range(z_dim)],
        **options,
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("gamma", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
        # Otherwise much of the output leaves [−1, 1] and is clipped.
        theirs.decoder.conv_out.bias.mul_(0.3)
    return theirs


@functools.cache
def pair(name):
    theirs = build(**CONFIGS[name])
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, *pretrained.load(folder)


def assert_close(ours, theirs):
    # float32 on both sides: some thirty layers, each rounded by about 1e-7. The largest difference
    # seen was 9e-7.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def to_torch(video):
    return torch.from_numpy(np.moveaxis(np.array(video), -1, 1))


def from_torch(video):
    return np.moveaxis(video.detach().numpy(), 1, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees(name):
    """An image is the first frame of a video: `test_first_frame_stands_alone` in tests/models."""
    theirs, module, variables = pair(name)
    random = np.random.default_rng(0)
    video = random.uniform(-1, 1, (2, *SIZES[name], module.image_channels)).astype(np.float32)

    @jax.jit
    def reconstruct(variables, video):
        mean, log_variance = module.apply(variables, video, method="encode")
        return mean, log_variance, module.apply(variables, mean, method="decode")

    mean, log_variance, reconstruction = reconstruct(variables, video)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(video)).latent_dist
        expected = from_torch(theirs.decode(posterior.mean).sample)
    assert_close(mean, from_torch(posterior.mean))
    assert_close(log_variance, from_torch(posterior.logvar))
    assert reconstruction.shape == video.shape
    assert np.mean(np.abs(expected) < 1) > 0.9
    assert_close(np.clip(reconstruction, -1, 1), expected)


@pytest.mark.parametrize("name", ["published pattern", "Wan 2.2"])
def test_chunks_agree(name):
    """Decode latents of 25 frames, here three at a time, in diffusers one at a time."""
    theirs, module, variables = pair(name)
    latents = np.random.default_rng(0).standard_normal((1, 1 + 6, 2, 3, 3)).astype(np.float32)
    step = jax.jit(functools.partial(apply_chunk, module, method="decode"))
    cache, chunks = None, []
    for chunk in np.split(latents, [1, 4], axis=1):
        frames, cache = step(variables, chunk, cache)
        chunks.append(frames)
    with torch.no_grad():
        expected = from_torch(theirs.decode(to_torch(latents)).sample)
    assert_close(np.clip(np.concatenate(chunks, axis=1), -1, 1), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, tmp_path):
    theirs, module, variables = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    # Pipelines use these for the latents' size. diffusers always gives those of the published
    # network.
    factors = dict(scale_factor_spatial=module.factor, scale_factor_temporal=module.temporal_factor)
    assert entries_of(again) == entries_of(theirs) | factors


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(widths=(6, 9)),
            r"cannot be saved .*widths=\(6, 9\) are not all multiples of the first",
        ),
        (dict(latent_mean=(0.0,) * 16), "latent_mean has 16 values, the class has 3"),
        (dict(latent_deviation=()), "latent_deviation has 0 values, the class has 3"),
        (dict(decoder_widths=(6, 18)), "decoder_widths=.6, 18. have other ratios than widths"),
    ],
)
def test_what_diffusers_cannot_say_is_named(fields, message, tmp_path):
    _, module, variables = pair("one halving")
    with pytest.raises(ValueError, match=message):
        pretrained.save(tmp_path / "ours", module.clone(**fields), variables)
    assert not (tmp_path / "ours").exists()


def test_moments_of_all_channels_are_those_of_each(tmp_path):
    _, module, variables = pair("one halving")
    pretrained.save(tmp_path, module.clone(latent_mean=(0.5,), latent_deviation=(2.0,)), variables)
    again, _ = pretrained.load(tmp_path)
    assert (again.latent_mean, again.latent_deviation) == ((0.5,) * 3, (2.0,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    pair("one halving")[0].save_pretrained(folder)
    return folder


def test_config_is_read(folder):
    module, _ = pretrained.load(folder)
    assert (module.latent_channels, module.widths, module.blocks) == (3, (6, 12), 1)
    assert (module.factor, module.temporal_factor) == (2, 2)
    np.testing.assert_allclose(module.latent_mean, (0, 0.1, 0.2))
    np.testing.assert_allclose(module.latent_deviation, (1, 2, 3))


def test_defaults_are_the_published_ones():
    """Without any entry, diffusers' defaults describe the published folder."""
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan()
    config = AUTOENCODER_WAN.complete({})
    module = AUTOENCODER_WAN.make(config)
    leaves = jax.tree.leaves_with_path(AUTOENCODER_WAN.shapes(module, config))
    names = AUTOENCODER_WAN.names(module, ())
    # every tensor of diffusers is used, and no other name
    assert {names(variable_path(path)) for path, _ in leaves} == theirs.state_dict().keys()


@pytest.mark.parametrize(
    "name, value",
    [
        ("patch_size", 2),
        ("attn_scales", [1.0]),
        ("dropout", 0.1),
        ("out_channels", 12),
        ("new_entry", 1),
        ("temperal_downsample", [True, False]),
    ],
)
def test_what_is_not_supported_is_named(folder, name, value, tmp_path):
    with pytest.raises(
        ValueError, match="temporal_downsample" if name == "temperal_downsample" else name
    ):
        pretrained.load(with_entries(folder, tmp_path, **{name: value}))


def test_faults_of_the_file_are_listed(folder, tmp_path):
    name = "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / name)
    tensors["encoder.stranger"] = tensors.pop("encoder.down_blocks.1.time_conv.bias")
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"][:, :-1]
    save_file(tensors, tmp_path / name)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError) as caught:
        pretrained.load(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert {" ".join(line.split()[:2]).rstrip(",") for line in lines} == {
        "missing: encoder.down_blocks.1.time_conv.bias",
        "misshapen: decoder.conv_in.weight",
        "extra: encoder.stranger",
    }
