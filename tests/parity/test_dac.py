"""The codec compared with transformers' DAC, through a folder that transformers saved."""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers import DacConfig, DacModel

from genjax import pretrained
from genjax.models.autoencoders.dac import DAC

from .libraries import assert_opens

CONFIGURATIONS = dict(
    even=dict(encoder_hidden_size=8, downsampling_ratios=[2, 4, 2], decoder_hidden_size=32),
    wide=dict(encoder_hidden_size=6, downsampling_ratios=[4, 8], decoder_hidden_size=20),
)


def randomized(configuration):
    torch.manual_seed(0)
    codes = dict(n_codebooks=3, codebook_size=64, codebook_dim=4, sampling_rate=8000)
    model = DacModel(DacConfig(**configuration, **codes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.3, 2)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * torch.randn_like(parameter))
            elif "codebook" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                inputs = parameter[0].numel() if "conv_t" not in name else 2 * len(parameter)
                scale = 0.1 if name == "decoder.conv2.weight" else 0.8  # the tanh is not saturated
                parameter.copy_(scale * inputs**-0.5 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=sorted(CONFIGURATIONS))
def saved(request, tmp_path_factory):
    theirs = randomized(CONFIGURATIONS[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, *pretrained.load(folder)


def assert_close(ours, theirs, tolerance=1e-5):
    """float32 on both sides: some thirty layers, each rounded by about 1e-7."""
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 1) if theirs.ndim == 3 else theirs[..., None]
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_latents_codes_losses_and_sounds_agree(saved):
    theirs, ours, variables = saved
    assert isinstance(ours, DAC) and ours.bitrate == 18 * 8000 / ours.factor
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 20 * ours.factor, 1)).astype(np.float32)

    @jax.jit
    def all_of(variables, sound):
        apply = functools.partial(ours.apply, variables)
        latents = apply(sound, method="encode")
        quantized = apply(latents, method="quantize")
        return latents, quantized, apply(quantized.indices, method="decode_indices"), apply(sound)

    latents, quantized, decoded, reconstruction = all_of(variables, sound)
    tensor = torch.from_numpy(sound.transpose(0, 2, 1))
    with torch.no_grad():
        assert_close(latents, theirs.encoder(tensor))
        _, representation, codes, _ = theirs.encode(tensor, return_dict=False)
        theirs.train()
        _, _, _, commitment, codebook = theirs.quantizer(theirs.encoder(tensor))
        theirs.eval()
        np.testing.assert_array_equal(quantized.indices, codes.numpy().transpose(0, 2, 1))
        assert len(np.unique(quantized.indices)) > 10
        assert_close(quantized.latents, representation)
        assert_close(decoded, theirs.decode(audio_codes=codes).audio_values)
        assert_close(reconstruction, theirs(tensor).audio_values)
    for name, loss in dict(commitment=commitment, codebook=codebook).items():
        np.testing.assert_allclose(quantized.losses[name], loss.mean(), rtol=1e-4)


def test_transformers_opens_what_is_saved_here(saved, tmp_path):
    theirs, ours, variables = saved
    again = assert_opens(theirs, ours, variables, tmp_path)
    assert again.config.hop_length == ours.factor and again.config.sampling_rate == 8000
