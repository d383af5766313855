"""The deep-compression autoencoder compared with diffusers', through a folder of diffusers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_dc import (
    dc_ae_f32c32,
    dc_ae_f32c32_sana,
    dc_ae_f64c128,
    dc_ae_f128c512,
)
from genjax.pretrained.autoencoder_dc import AUTOENCODER_DC

from .libraries import assert_opens, entries_of, with_entries

CONVOLUTIONS, ATTENTION = "ResBlock", "EfficientViTBlock"
# Thin versions of the published networks: an empty first stage, batch norm in the decoder, no
# scales.
REARRANGING = dict(
    latent_channels=4,
    attention_head_dim=8,
    encoder_block_types=[CONVOLUTIONS, CONVOLUTIONS, ATTENTION],
    decoder_block_types=[CONVOLUTIONS, CONVOLUTIONS, ATTENTION],
    encoder_block_out_channels=[8, 16, 16],
    decoder_block_out_channels=[8, 16, 16],
    encoder_layers_per_block=[0, 2, 1],
    decoder_layers_per_block=[0, 1, 2],
    encoder_qkv_multiscales=[[], [], []],
    decoder_qkv_multiscales=[[], [], []],
    decoder_norm_types=["batch_norm", "batch_norm", "rms_norm"],
    decoder_act_fns=["relu", "relu", "silu"],
    scaling_factor=0.5,
)
# As in Sana: attention at scales, plain changes of resolution, and the remaining options.
PLAIN = dict(
    latent_channels=2,
    attention_head_dim=4,
    encoder_block_types=[CONVOLUTIONS, ATTENTION],
    decoder_block_types=[CONVOLUTIONS, ATTENTION],
    encoder_block_out_channels=[8, 16],
    decoder_block_out_channels=[4, 8],
    encoder_layers_per_block=[1, 2],
    decoder_layers_per_block=[2, 1],
    encoder_qkv_multiscales=[[], [5]],
    decoder_qkv_multiscales=[[], [3, 5]],
    downsample_block_type="conv",
    upsample_block_type="interpolate",
    decoder_norm_types=["rms_norm", "batch_norm"],
    encoder_out_shortcut=False,
    decoder_in_shortcut=False,
    decoder_conv_act_fn="silu",
)
CONFIGURATIONS = dict(rearranging=REARRANGING, plain=PLAIN)


def randomized(configuration):
    torch.manual_seed(0)
    model = AutoencoderDC(**configuration).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(("weight" in name) + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model


def assert_close(ours, theirs):
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 0.1 and ours.dtype == jnp.float32
    # float32 on both sides: some twenty layers, each rounded by about 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    theirs, folder = randomized(CONFIGURATIONS[request.param]), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, *pretrained.load(folder)


# At 8×4 pixels there are fewer latents than features of a head, so diffusers takes a quadratic
# path.
SIDES = {3: [(24, 16), (8, 4)], 2: [(8, 14)]}


def test_latents_and_images_agree(saved):
    theirs, ours, variables = saved
    assert ours.factor == theirs.spatial_compression_ratio
    assert ours.latent_deviation == (1 / theirs.config.scaling_factor,)

    @jax.jit
    def both(variables, images):
        latents = ours.apply(variables, images, method="encode")
        return (
            latents,
            ours.apply(variables, latents, method="decode"),
            ours.apply(variables, images),
        )

    for sides in SIDES[len(ours.encoder_stages)]:
        images = np.random.default_rng(0).standard_normal((2, *sides, 3), np.float32)
        latents, decoded, reconstructed = both(variables, images)
        with torch.no_grad():
            expected = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent
            assert_close(latents, expected)
            assert_close(decoded, theirs.decode(expected).sample)
        np.testing.assert_array_equal(reconstructed, decoded)


def test_what_is_saved_opens_in_diffusers(saved, tmp_path):
    theirs, module, variables = saved
    again = assert_opens(theirs, module, variables, tmp_path)
    # One value for all stages is written as one value per stage, and the inverse of the scale is
    # kept.
    expected = entries_of(theirs) | dict(scaling_factor=pytest.approx(theirs.config.scaling_factor))
    for name in ("decoder_norm_types", "decoder_act_fns"):
        if isinstance(expected[name], str):
            expected[name] = [expected[name]] * len(expected["decoder_block_out_channels"])
    assert entries_of(again) == expected


def from_config(**entries):
    return AUTOENCODER_DC.make(AUTOENCODER_DC.complete(entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda stage: dict(encoder_stages=(stage, replace(stage, norm="batch"))),
            "encoder_stages=.*batch",
        ),
        (
            lambda stage: dict(encoder_stages=(stage, replace(stage, activation="relu"))),
            "encoder_stages=.*relu",
        ),
        (
            lambda stage: dict(latent_mean=(0.5,)),
            r"latent_mean=\(0.5,\) is not supported; only \(0.0,\)",
        ),
        (
            lambda stage: dict(latent_deviation=(1.0, 2.0)),
            "cannot be saved as AutoencoderDC: latent_deviation has 2 values, the class has 1",
        ),
    ],
)
def test_what_diffusers_cannot_say_is_named(tmp_path, change, message):
    module = from_config(**PLAIN)
    with pytest.raises(ValueError, match=message):
        pretrained.save(tmp_path / "ours", module.clone(**change(module.encoder_stages[0])), {})
    assert not (tmp_path / "ours").exists()


def published(num_stages, latent_channels):
    channels = [128, 256, 512, 512, 1024, 1024, 2048, 2048][:num_stages]
    attentions = num_stages - 3
    types = [CONVOLUTIONS] * 3 + [ATTENTION] * attentions
    return dict(
        latent_channels=latent_channels,
        encoder_block_types=types,
        decoder_block_types=types,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=[0, 4, 8] + [2] * attentions,
        decoder_layers_per_block=[0, 5, 10] + [2] * attentions,
        encoder_qkv_multiscales=[()] * num_stages,
        decoder_qkv_multiscales=[()] * num_stages,
        decoder_norm_types=["batch_norm"] * 3 + ["rms_norm"] * attentions,
        decoder_act_fns=["relu"] * 3 + ["silu"] * attentions,
    )


SANA = dict(
    encoder_block_types=[CONVOLUTIONS] * 3 + [ATTENTION] * 3,
    decoder_block_types=[CONVOLUTIONS] * 3 + [ATTENTION] * 3,
    encoder_layers_per_block=[2, 2, 2, 3, 3, 3],
    decoder_layers_per_block=[3] * 6,
    downsample_block_type="conv",
    upsample_block_type="interpolate",
    scaling_factor=0.41407,
)


@pytest.mark.parametrize(
    ("build", "configuration"),
    [
        (dc_ae_f32c32, published(6, 32)),
        (dc_ae_f64c128, published(7, 128)),
        (dc_ae_f128c512, published(8, 512)),
        (dc_ae_f32c32_sana, SANA),
    ],
)
def test_published_models(build, configuration):
    """The configurations are those of diffusers' conversion script for the authors' weights."""
    with torch.device("meta"):
        theirs = AutoencoderDC(**configuration)
    ours = from_config(**entries_of(theirs))
    assert ours == build()
    image = jax.ShapeDtypeStruct((1, ours.factor, ours.factor, 3), jnp.float32)
    variables = jax.eval_shape(ours.init, jax.random.key(0), image)
    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    randomized(PLAIN).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(downsample_block_type="pool"),
            "downsample_block_type='pool' .*'pixel_unshuffle', 'conv'",
        ),
        (
            dict(decoder_norm_types="layer_norm"),
            "norm_types='layer_norm' .* 'rms_norm', 'batch_norm'",
        ),
        (dict(decoder_act_fns="mish"), "decoder_act_fns='mish' .* 'silu', 'relu'"),
        (dict(decoder_conv_act_fn="gelu"), "decoder_conv_act_fn='gelu'"),
        (dict(encoder_block_types="Other"), "types='Other' .* 'ResBlock', 'EfficientViTBlock'"),
        (dict(new_entry=1), "entries that are not known here: {'new_entry': 1}"),
        (
            dict(latent_channels=4, encoder_block_out_channels=[8, 16]),
            "misshapen: encoder.conv_out.weight",
        ),
    ],
)
def test_faults(plain_folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(plain_folder, tmp_path, **change))
