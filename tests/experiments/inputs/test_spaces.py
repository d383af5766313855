"""Levels of pixels, and tokens of a frozen autoencoder, and the way back from them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.configuration import kinds
from experiments.inputs.autoencoders import FrozenAutoencoder
from experiments.inputs.sound_and_video import SoundAndVideo
from experiments.inputs.spaces import Latents, Pixels, Tokens, Waveforms
from genjax import pretrained
from genjax.data import to_float
from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn import TokenLayout
from genjax.nn.quantizers import VectorQuantizer

DATA = ConfigDict(dict(image_shape=(8, 12, 3), feature="image"))


def save_small(module, folder):
    """Save a network with random weights in its published form; return its variables."""
    random = np.random.default_rng(0)
    draw = lambda a: (
        np.prod(a.shape[:-1]).astype(np.float32) ** -0.5
        * random.standard_normal(a.shape, np.float32)
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 8, 12, 3), np.float32))
    variables = jax.tree.map(draw, shapes)
    pretrained.save(folder, module, variables)
    return variables


@pytest.mark.parametrize("space", [Pixels((2, 2, 3)), Waveforms((4, 1), "audio", 8000)])
def test_integers_of_another_range_are_no_floats(space):
    with pytest.raises(ValueError, match="got int32"):
        space.encode(jnp.ones((2, *space.shape), jnp.int32))


def test_tokens_are_the_nearest_codes_and_decode_to_the_reconstruction(tmp_path):
    module = VQModel(VectorQuantizer(16, 3), encoder_channels=4, widths=(4, 4), blocks=1, groups=2)
    variables = save_small(module, tmp_path)
    space = kinds.SPACE.bind(dict(name="Tokens", published=str(tmp_path)), "space", data=DATA)
    assert space.shape == (4, 6) and space.vocabulary == 16
    assert space.layout == TokenLayout((4, 6), 16)
    frozen = space.frozen()
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), frozen)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), space.abstract_frozen())

    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), np.uint8))
    codes = jax.jit(space.encode)(images, frozen)
    latents = module.apply(variables, to_float(images), method="encode")
    codebook = module.apply(
        variables, jnp.arange(16), method=lambda self, i: self.quantizer.lookup(i)
    )
    distances = np.square(np.asarray(latents)[..., None, :] - codebook).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert codes.dtype == np.int32 and len(np.unique(codes)) > 4
    reconstruction = module.apply(variables, to_float(images))
    decode = jax.jit(space.decode)
    np.testing.assert_allclose(decode(codes, frozen), reconstruction, rtol=1e-5, atol=1e-6)
    # Masked codes, in the second row and in the fourth column, are grey squares of 2×2 pixels.
    partial = np.asarray(decode(codes.at[:, 1].set(16).at[:, :, 3].set(16), frozen))
    np.testing.assert_array_equal(partial[:, 2:4], 0)
    np.testing.assert_array_equal(partial[:, :, 6:8], 0)
    assert np.all(np.any(np.delete(partial, [2, 3], 1)[:, :, [0, 5, 8, 11]] != 0, axis=-1))


def test_an_autoencoder_without_codes_has_no_tokens(tmp_path):
    save_small(AutoencoderKL(latent_channels=4, widths=(4, 4), blocks=1, groups=2), tmp_path)
    with pytest.raises(ValueError, match="config.space is Tokens, and AutoencoderKL has no codes"):
        kinds.SPACE.bind(dict(name="Tokens", published=str(tmp_path)), "space", data=DATA)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_are_the_values_of_bytes_and_decode_to_them(levels):
    """The digits' values 0 … 16 are stored as round(value · 255 / 16)."""
    values = np.arange(levels)
    stored = np.rint(values * 255 / (levels - 1)).astype(np.uint8).reshape(1, -1, 1, 1)
    data = ConfigDict(dict(image_shape=(levels, 1, 1), feature="image", levels=levels))
    space = kinds.SPACE.bind(dict(name="Levels"), "space", data=data)
    encoded = jax.jit(space.encode)(stored)
    np.testing.assert_array_equal(encoded.ravel(), values)
    np.testing.assert_array_equal(space.to_data(space.decode(encoded)), stored)


class EveryFourth(nn.Module):
    """Latents are every fourth frame or sample, and codes whether they are positive."""

    factor: int = 4

    @property
    def quantizer(self):
        return SimpleNamespace(num_codes=2)

    def encode(self, x):
        return x[:, ::4]

    def decode(self, latents):
        return jnp.repeat(latents, 4, axis=1)

    def decode_indices(self, indices):
        return self.decode(2.0 * indices[..., None] - 1)


@pytest.mark.parametrize("shape", [(17, 8, 8, 3), (18, 1)], ids=["video", "sound"])
def test_decoded_latents_have_the_time_of_the_data(shape):
    """17 frames have five latent frames, which decode to 20; two more latents stay eight more."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), jnp.float32)
    autoencoder = FrozenAutoencoder(EveryFourth(), None, "ema", "published", None)
    data = (Waveforms if len(shape) == 2 else Pixels)(shape)
    space = Latents((5, *shape[1:]), data, "video", autoencoder, None)
    frozen = {"autoencoder": {"variables": {}, "mean": 0.5, "deviation": 2.0}}
    latents = (x[:, ::4] - 0.5) / 2
    decoded = space.decode(latents, frozen)
    expected = jnp.repeat(x[:, ::4], 4, 1)[:, : shape[0]]
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6)
    longer = space.decode(jnp.concatenate([latents, latents[:, :2]], 1), frozen)
    assert longer.shape == (2, 28, *shape[1:])


def test_decoded_codes_have_the_time_of_the_data_and_masked_ones_are_silent():
    autoencoder = FrozenAutoencoder(EveryFourth(), None, "ema", "published", None)
    space = Tokens((5,), Waveforms((18, 1)), "audio", autoencoder, 2)
    decoded = space.decode(jnp.asarray([[1, 2, 0, 1, 2]]), {"tokenizer": {}})
    np.testing.assert_array_equal(decoded[0, :, 0], np.repeat([1, 0, -1, 1, 0], 4)[:18])


def test_sounds_are_not_mirrored_and_their_clips_may_be():
    data = ConfigDict(dict(image_shape=(8, 1), feature="audio", flip=True))
    with pytest.raises(ValueError, match="flip is True, which would play sounds backwards"):
        Waveforms.from_data(data)
    data.update(image_shape=(2, 4, 4, 1), feature="video", sound_shape=(8, 1))
    sound, video = dict(space="Waveforms"), dict(space="Pixels")
    space = dict(name="SoundAndVideo", video=video, sound=sound)
    assert kinds.SPACE.bind(space, "space", data=data).shape["sound"] == (8, 1)


def test_a_clip_is_drawn_with_its_sound_below():
    """A pixel of the picture is 5×5 points. Half of full scale is the second of five rows."""
    video = np.full((1, 2, 10, 10, 1), 7, np.uint8)
    sound = np.repeat(np.array([[0], [2**14]], np.int16), 10, axis=0)[None]
    pixels = np.asarray(SoundAndVideo.picture({"video": video, "sound": sound}, 1))[3::5, 3::5]
    silent, loud = [0, 0, 255, 0, 0], [0, 255, 255, 0, 0]
    np.testing.assert_array_equal(pixels[:10], 7)
    np.testing.assert_array_equal(pixels[10:].T, [silent] * 10 + [loud] * 10)


def test_sound_has_the_rate_at_which_it_is_read():
    data = dict(image_shape=(8, 1), feature="audio", options=dict(sample_rate=8000))
    data = ConfigDict(data)
    assert Waveforms.from_data(data).sample_rate == 8000
    with pytest.raises(
        ValueError, match="sample_rate is 8000, .* and config.data.sample_rate is 16"
    ):
        data.sample_rate = 16_000
        Waveforms.from_data(data)
