"""The tiny autoencoder compared with diffusers', through a folder that diffusers saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_tiny import AutoencoderTiny as Ours
from genjax.pretrained.autoencoder_tiny import AUTOENCODER_TINY

from .libraries import assert_opens, entries_of, with_entries

FOUR = dict(
    encoder_block_out_channels=[8] * 4,
    decoder_block_out_channels=[8] * 4,
    num_encoder_blocks=[1, 2, 1, 1],
    num_decoder_blocks=[2, 1, 1, 1],
)
SIXTEEN = dict(
    latent_channels=16,
    encoder_block_out_channels=[12] * 3,
    decoder_block_out_channels=[12] * 3,
    num_encoder_blocks=[1, 1, 3],
    num_decoder_blocks=[3, 2, 1],
    latent_magnitude=2,
    latent_shift=0.4,
    scaling_factor=0.5,
    shift_factor=0.1,
)


def randomized(configuration):
    torch.manual_seed(0)
    model = AutoencoderTiny(**configuration).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn_like(parameter))
    return model


def assert_close(ours, theirs):
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 0.1 and ours.dtype == jnp.float32
    # float32 on both sides: some thirty layers, each rounded by about 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module", params=["four", "sixteen"])
def saved(request, tmp_path_factory):
    configuration, sides = dict(four=(FOUR, (16, 24)), sixteen=(SIXTEEN, (12, 8)))[request.param]
    theirs, folder = randomized(configuration), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, sides, *pretrained.load(folder)


def test_latents_and_images_agree(saved):
    theirs, sides, ours, variables = saved
    assert ours.latent_deviation == (1 / theirs.config.scaling_factor,)
    assert ours.latent_mean == (theirs.config.shift_factor,)
    images = np.random.default_rng(0).uniform(-1, 1, (2, *sides, 3)).astype(np.float32)

    @jax.jit
    def all_of(variables, images):
        apply = functools.partial(ours.apply, variables)
        latents = apply(images, method="encode")
        far = 4 * latents / jnp.std(latents)  # far into the tanh, and beyond the range of bytes
        through_bytes = lambda latents: apply(
            apply(latents, method="to_bytes"), method="from_bytes"
        )
        as_theirs = apply(through_bytes(latents), method="decode")
        reconstructed = apply(images), apply(latents, method="decode")
        return (
            latents,
            far,
            through_bytes(far),
            apply(far, method="decode"),
            as_theirs,
            reconstructed,
        )

    latents, far, restored, decoded, as_theirs, reconstructed = all_of(variables, images)
    assert ours.factor == images.shape[1] // latents.shape[1]
    np.testing.assert_array_equal(*reconstructed)
    channel_first = lambda x: torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
    with torch.no_grad():
        assert_close(latents, theirs.encode(channel_first(images)).latents)
        assert_close(decoded, theirs.decode(channel_first(far)).sample)
        share = theirs.scale_latents(channel_first(far))
        assert share.min() == 0 and share.max() == 1
        assert_close(restored, theirs.unscale_latents((share * 255).round() / 255))
        assert_close(as_theirs, theirs(channel_first(images)).sample)


def test_what_is_saved_opens_in_diffusers(saved, tmp_path):
    theirs, _, module, variables = saved
    again = assert_opens(theirs, module, variables, tmp_path)
    # The inverse of the scale is kept.
    scale = dict(scaling_factor=pytest.approx(theirs.config.scaling_factor))
    assert entries_of(again) == entries_of(theirs) | scale


@pytest.mark.parametrize("name", ["latent_mean", "latent_deviation"])
def test_what_diffusers_cannot_say_is_named(tmp_path, name):
    with pytest.raises(
        ValueError, match=f"as AutoencoderTiny: {name} has 4 values, the class has 1"
    ):
        pretrained.save(tmp_path / "ours", Ours(**{name: (1.0, 2.0, 3.0, 4.0)}), {})
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("latent_channels", [4, 16])
def test_published_models(latent_channels):
    """TAESD has diffusers' defaults; the networks for 16 channels differ in these entries only."""
    with torch.device("meta"):
        theirs = AutoencoderTiny(latent_channels=latent_channels)
    ours = AUTOENCODER_TINY.make(AUTOENCODER_TINY.complete(entries_of(theirs)))
    assert ours == Ours(latent_channels)
    variables = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    count = sum(a.size for a in jax.tree.leaves(variables))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    randomized(FOUR).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(act_fn="mish"), "act_fn='mish' .* 'relu'"),
        (dict(upsample_fn="bilinear"), "upsample_fn='bilinear' .* 'nearest'"),
        (dict(upsampling_scaling_factor=4), "upsampling_scaling_factor=4"),
        (dict(out_channels=4), "out_channels=4"),
        (
            dict(decoder_block_out_channels=[8, 8, 8, 16]),
            r"decoder_block_out_channels=\[8, 8, 8, 16\]",
        ),
        (dict(new_entry=1), "entries that are not known here: {'new_entry': 1}"),
        (dict(num_encoder_blocks=[1, 1, 1, 1]), "missing: encoder.layers.8.weight"),
    ],
)
def test_faults(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **change))
