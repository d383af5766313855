"""The codec compared with transformers' EnCodec, through a folder that transformers saved."""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from genjax import pretrained
from genjax.models.autoencoders.encodec import EnCodec

from .libraries import assert_opens

CONFIGURATIONS = dict(
    deep=dict(num_filters=8, upsampling_ratios=[4, 2, 2], num_residual_layers=2),
    stereo=dict(num_filters=6, upsampling_ratios=[8, 5], audio_channels=2),
)


def randomized(configuration):
    torch.manual_seed(0)
    codes = dict(hidden_size=12, codebook_size=64, codebook_dim=12, sampling_rate=8000)
    factor = int(np.prod(configuration["upsampling_ratios"]))
    levels = 6 * (8000 // factor) / 1000  # kb/s of a level
    config = EncodecConfig(
        **configuration, **codes, target_bandwidths=[levels, round(3 * levels, 3)]
    )
    model = EncodecModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(torch.empty_like(parameter).uniform_(1.5, 2.5))
            elif "bias" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
        noise = torch.rand(1, config.audio_channels, 64 * factor) * 2 - 1
        latents = model.encoder(noise)[0].T
        for i, layer in enumerate(model.quantizer.layers):
            codebook = layer.codebook
            drawn = torch.randn_like(codebook.embed) * latents.std(0) / 2**i
            codebook.embed.copy_(drawn + latents.mean(0) * (i == 0))
            codebook.embed_avg.copy_(codebook.embed)
            codebook.cluster_size.fill_(1.0)
    return model


@pytest.fixture(scope="module", params=sorted(CONFIGURATIONS))
def saved(request, tmp_path_factory):
    theirs = randomized(CONFIGURATIONS[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, *pretrained.load(folder), folder


def assert_close(ours, theirs, tolerance=1e-5):
    """float32 on both sides: some twenty layers and the LSTMs, each rounded by about 1e-7."""
    theirs = theirs.detach().numpy().transpose(0, 2, 1)
    assert theirs.std() > 0.02
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_latents_codes_and_sounds_agree(saved):
    theirs, ours, variables, _ = saved
    bandwidth = theirs.config.target_bandwidths[-1]
    assert isinstance(ours, EnCodec) and ours.bitrate == pytest.approx(1000 * bandwidth)
    shape = (2, 20 * ours.factor, ours.channels)
    sound = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    @jax.jit
    def all_of(variables, sound):
        apply = functools.partial(ours.apply, variables)
        latents = apply(sound, method="encode")
        indices = apply(latents, method="quantize").indices
        first = apply(indices[..., :1], method="decode_indices")
        return latents, indices, apply(indices, method="decode_indices"), first, apply(sound)

    latents, indices, decoded, coarse, reconstruction = all_of(variables, sound)
    tensor = torch.from_numpy(sound.transpose(0, 2, 1))
    with torch.no_grad():
        assert_close(latents, theirs.encoder(tensor))
        codes = theirs.encode(tensor, bandwidth=bandwidth).audio_codes
        np.testing.assert_array_equal(indices, codes[0].numpy().transpose(0, 2, 1))
        assert len(np.unique(indices)) > 10
        assert_close(decoded, theirs.decode(codes, [None]).audio_values)
        assert_close(coarse, theirs.decode(codes[:, :, :1], [None]).audio_values)
        assert_close(reconstruction, theirs(tensor, bandwidth=bandwidth).audio_values)


def test_transformers_opens_what_is_saved_here(saved, tmp_path):
    theirs, ours, variables, _ = saved
    again = assert_opens(theirs, ours, variables, tmp_path)
    assert again.config.hop_length == ours.factor and again.config.sampling_rate == 8000
    assert again.quantizer.num_quantizers == 3


def test_files_with_older_names_of_weight_norm_are_read(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, variables, folder = saved
    words = {"parametrizations.weight.original0": "weight_g"}
    words |= {"parametrizations.weight.original1": "weight_v"}
    tensors = load_file(folder / "model.safetensors")
    for new, old in words.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path)[1], variables)


def test_the_published_configuration_has_the_librarys_count():
    from genjax.models.autoencoders.encodec import ENCODEC_24KHZ

    with torch.device("meta"):
        theirs = EncodecModel(EncodecConfig())
    codes = sum(a.numel() for name, a in theirs.named_buffers() if name.endswith(".embed"))
    count = sum(a.numel() for a in theirs.parameters()) + codes
    codec = ENCODEC_24KHZ()
    ours = jax.eval_shape(codec.init, jax.random.key(0), np.zeros((1, 2240, 1), np.float32))
    assert sum(a.size for a in jax.tree.leaves(ours)) == count
    assert codec.bitrate == 24_000 and codec.frame_rate == 75
