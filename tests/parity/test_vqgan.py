"""A small random `VQModel` of diffusers, saved by diffusers and loaded here.

Measured: codes are equal; latents and images differ by less than 9e-6 of their largest value.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from diffusers import VQModel

from genjax import pretrained
from genjax.nn.quantizers import FiniteScalarQuantizer, VectorQuantizer

from .libraries import assert_opens, entries_of, with_entries

CONFIGS = {
    "one level": dict(
        block_out_channels=[6],
        norm_num_groups=3,
        in_channels=1,
        out_channels=4,
        num_vq_embeddings=32,
    ),
    "features of their own": dict(
        block_out_channels=[8, 12],
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=5,
        vq_embed_dim=2,
        num_vq_embeddings=24,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    ),
    "attention at the last level": dict(
        block_out_channels=[4, 8, 4],
        norm_num_groups=2,
        latent_channels=3,
        vq_embed_dim=6,
        num_vq_embeddings=40,
        down_block_types=2 * ["DownEncoderBlock2D"] + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + 2 * ["UpDecoderBlock2D"],
    ),
}
# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def create(config):
    """Return a network whose weights keep activations in scale, with active biases and norms."""
    levels = len(config["block_out_channels"])
    types = dict(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    torch.manual_seed(0)
    model = VQModel(**types | config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset, deviation = 0.0, np.prod(parameter.shape[1:]) ** -0.5
            if parameter.ndim == 1:
                offset, deviation = 0.5, 0.3
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
        # Many codes are chosen if the codes have the spread of the latents.
        latents = model.encode(torch.randn(4, model.config.in_channels, 8, 8)).latents
        model.quant_conv.bias.sub_(latents.mean(dim=(0, 2, 3)))
        model.quantize.embedding.weight.mul_(2 * latents.std(dim=(0, 2, 3)))
    return model


def channel_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    # Some 20 to 40 layers in float32 on both sides, each rounded by about 1e-7 relative. Norms that
    # divide by a deviation much smaller than the mean round by more.
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For a configuration: diffusers' network, its folder, and the module loaded from it."""

    @functools.cache
    def save(name):
        theirs, folder = create(CONFIGS[name]), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, folder, *pretrained.load(folder)

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees(name, saved):
    theirs, _, module, variables = saved(name)
    images = torch.randn(2, theirs.config.in_channels, 13, 22)
    with torch.no_grad():
        latents = theirs.encode(images).latents
        codes, _, (_, _, indices) = theirs.quantize(latents)
        reconstruction = theirs(images).sample

    @quick_jit
    def apply(variables, images):
        latents = module.apply(variables, images, method="encode")
        quantized = module.apply(variables, latents, method="quantize")
        reconstruction = module.apply(variables, quantized.indices, method="decode_indices")
        return latents, quantized, reconstruction

    ours, quantized, decoded = apply(variables, channel_last(images))
    assert ours.shape == (2, 13 // module.factor, 22 // module.factor, module.latent_channels)
    assert_close(ours, channel_last(latents))
    np.testing.assert_array_equal(quantized.indices, indices.numpy().reshape(ours.shape[:-1]))
    assert len(indices.unique()) > 8
    assert_close(quantized.latents, channel_last(codes))
    assert_close(decoded, channel_last(reconstruction))
    assert module.latent_deviation == (1 / theirs.config.scaling_factor,)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, saved, tmp_path):
    theirs, _, module, variables = saved(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    config = entries_of(theirs)
    config["vq_embed_dim"] = config["vq_embed_dim"] or config["latent_channels"]
    config["scaling_factor"] = pytest.approx(config["scaling_factor"])  # the inverse is kept
    assert entries_of(again) == config


def test_a_codebook_of_averages_and_unit_length_is_saved_by_its_effect(saved, tmp_path):
    _, _, module, variables = saved("features of their own")
    random = np.random.default_rng(0)
    codes = random.standard_normal((24, 2)).astype(np.float32)
    module = module.clone(quantizer=VectorQuantizer(24, 2, normalize=True, ema_decay=0.99))
    params = {name: value for name, value in variables["params"].items() if name != "quantizer"}
    codebook = {"quantizer": {"codes": codes, "shares": np.ones(24, np.float32)}}
    variables = {"params": params, "codebook": codebook}
    pretrained.save(tmp_path / "ours", module, variables)
    theirs = VQModel.from_pretrained(tmp_path / "ours")
    latents = random.standard_normal((2, 5, 7, 2)).astype(np.float32)
    quantized = quick_jit(functools.partial(module.apply, method="quantize"))(variables, latents)
    with torch.no_grad():
        expected, _, (_, _, indices) = theirs.quantize(
            torch.from_numpy(latents.transpose(0, 3, 1, 2))
        )
    np.testing.assert_array_equal(quantized.indices, indices.numpy().reshape(2, 5, 7))
    assert len(indices.unique()) > 8
    assert_close(quantized.latents, channel_last(expected))


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(quantizer=FiniteScalarQuantizer((8, 6, 5))),
            "quantizer=.*FiniteScalar.* is not supported",
        ),
        (dict(latent_mean=(0.5,)), r"latent_mean=\(0.5,\) is not supported; only \(0.0,\)"),
        (
            dict(latent_deviation=(1.0, 2.0, 3.0)),
            "cannot be saved as VQModel: latent_deviation has 3 values, the class has 1",
        ),
    ],
)
def test_what_diffusers_cannot_say_is_named(fields, message, saved, tmp_path):
    _, _, module, variables = saved("one level")
    with pytest.raises(ValueError, match=message):
        pretrained.save(tmp_path / "ours", module.clone(**fields), variables)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"norm_type": "spatial"}, "norm_type='spatial' is not supported; only 'group'"),
        ({"beta": 0.25}, r"entries that are not known here: \{'beta': 0.25\}"),
        (
            {"num_vq_embeddings": 33},
            r"misshapen: quantize.embedding.weight \(32, 3\) .* "
            r"for params/quantizer/codes \(33, 3\)",
        ),
    ],
)
def test_faults_are_named(entries, message, saved, tmp_path):
    _, folder, _, _ = saved("one level")
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **entries))
