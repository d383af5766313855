import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.mel_autoencoder import MelAutoencoder
from genjax.models.autoencoders.vocos import Vocos
from genjax.nn.windows import apply_windows

KEY = jax.random.key(0)
RATES = dict(sample_rate=8000, n_fft=64, hop=16, num_mels=10)
VOCODER = Vocos(**RATES, width=12, mlp_width=16, depth=2, centered=False)
AUTOENCODER = MelAutoencoder(
    4, 12, depth=1, strides=(2, 4), vocoder_width=12, vocoder_depth=1, **RATES
)


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@functools.cache
def variables_of(module):
    draw = lambda a: jnp.asarray(np.random.default_rng(a.size).normal(0, 0.3, a.shape), a.dtype)
    return jax.tree.map(draw, jax.eval_shape(module.init, KEY, jnp.zeros((1, 1024, 1))))


def test_the_published_vocoder_has_its_published_size():
    """13.5 M, as the authors say; exactly by the layers of the paper, here added up."""
    block = 7 * 512 + 512 + 2 * 512 + 512 * 1536 + 1536 + 1536 * 512 + 512 + 512
    expected = 100 * 512 * 7 + 512 + 2 * 512 + 8 * block + 2 * 512 + 512 * 1026 + 1026
    vocoder = Vocos()
    sound = jnp.zeros((1, 24_000, 1))
    shape, variables = jax.eval_shape(vocoder.init_with_output, KEY, sound)
    assert size(variables) == expected == 13_531_650
    assert shape.shape == (1, 93 * 256, 1)  # 94 centred frames span 93 hops


def test_a_spectrogram_and_its_sound_have_the_same_length():
    sound = jax.random.uniform(KEY, (2, 320, 1), minval=-1)
    bands = VOCODER.apply({}, sound, method="encode")
    assert bands.shape == (2, 20, 10)
    # a sound e times louder is one neper up in every band
    louder = VOCODER.apply({}, np.e * sound, method="encode")
    np.testing.assert_allclose(louder - bands, 1, atol=1e-4)
    assert VOCODER.apply(variables_of(VOCODER), sound).shape == sound.shape


@pytest.mark.parametrize("module", [VOCODER, AUTOENCODER], ids=["vocoder", "autoencoder"])
def test_windows_of_time_give_the_whole(module):
    variables, factor = variables_of(module), module.factor
    frames = 8 + 2 * max(module.encoder_margin, module.decoder_margin) + 9
    sound = jax.random.uniform(KEY, (1, frames * factor, 1), minval=-1)
    encode, decode = (
        functools.partial(module.apply, variables, method=name) for name in ("encode", "decode")
    )
    in_windows = functools.partial(apply_windows, size=8)

    @jax.jit
    def encoded(x):
        return encode(x), in_windows(encode, x, margin=module.encoder_margin, stride=factor)

    @jax.jit
    def decoded(z):
        return decode(z), in_windows(decode, z, margin=module.decoder_margin, scale=factor)

    latents, by_windows = encoded(sound)
    compare = functools.partial(np.testing.assert_allclose, rtol=0)
    jax.tree.map(functools.partial(compare, atol=1e-4), by_windows, latents)  # logarithms
    z = latents[0] if isinstance(latents, tuple) else latents
    whole, by_windows = decoded(z)
    assert whole.shape == sound.shape and np.std(whole) > 0.02
    compare(by_windows, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("module", [VOCODER, AUTOENCODER], ids=["vocoder", "autoencoder"])
def test_margins_are_where_the_reach_ends(module):
    """A frame moves no samples beyond the margin, and moves some at most three frames nearer."""
    variables, margin = variables_of(module), module.decoder_margin
    at = 2 * margin
    latents = jax.random.normal(KEY, (1, 4 * margin, module.latent_channels))
    decode = jax.jit(lambda z: module.apply(variables, z, method="decode"))
    moved = decode(latents.at[0, at].add(9.0)) != decode(latents)
    (reached,) = np.nonzero(np.asarray(moved[0, :, 0]))
    nearest, farthest = reached.min() // module.factor, reached.max() // module.factor
    assert margin - 3 <= at - nearest <= margin and margin - 3 <= farthest - at <= margin


def test_sound_passes_through_bands_to_latents_and_back():
    sound = jax.random.uniform(KEY, (2, 1024, 1), minval=-1)
    variables = variables_of(AUTOENCODER)
    alone = Vocos(**RATES, width=12, mlp_width=36, depth=1, centered=False)

    @jax.jit
    def results(sound):
        apply = functools.partial(AUTOENCODER.apply, variables)
        mean, log_variance = apply(sound, method="encode")
        bands = apply(mean, method="decode_bands")
        vocoded = alone.apply({"params": variables["params"]["vocoder"]}, bands, method="decode")
        true = alone.apply({}, sound, method="encode")
        mel = apply(sound, mean, method="inner_losses")["mel"]
        return (mean, log_variance), bands, vocoded, apply(sound), mel, true

    moments, bands, vocoded, reconstruction, mel, true = results(sound)
    assert moments[0].shape == moments[1].shape == (2, 8, 4) and bands.shape == (2, 64, 10)
    np.testing.assert_allclose(reconstruction, vocoded, rtol=1e-4, atol=1e-5)  # float32
    np.testing.assert_allclose(mel, np.abs(bands - true).mean() / 4, rtol=1e-5)


def test_a_sound_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1000 samples; pad it to a multiple of 128"):
        AUTOENCODER.init(KEY, jnp.zeros((1, 1000, 1)))


def test_strides_are_even():
    """An odd stride would give fewer frames than it takes: 3·n − 1."""
    with pytest.raises(ValueError, match=r"strides are even numbers; got \(3,\)"):
        AUTOENCODER.clone(strides=(3,)).init(KEY, jnp.zeros((1, 192, 1)))


def test_other_channels_and_integers_are_refused(unchecked_annotations):
    """Flax would make a network of 2 channels, whose output has 1."""
    with pytest.raises(ValueError, match="have 2 channels; this network takes 1"):
        jax.eval_shape(AUTOENCODER.init, KEY, jnp.zeros((1, 128, 2)))
    with pytest.raises(ValueError, match="waveforms are floats .*; got int16"):
        jax.eval_shape(AUTOENCODER.init, KEY, jnp.zeros((1, 128, 1), jnp.int16))


def test_a_loud_spectrogram_has_finite_gradients():
    """Its magnitude is at most 100. The exponential of 200 is infinite."""
    variables = jax.tree.map(lambda a: 0 * a, variables_of(VOCODER))
    variables["params"]["head"]["bias"] = jnp.full_like(variables["params"]["head"]["bias"], 200.0)
    bands = VOCODER.apply({}, jnp.ones((1, 320, 1)), method="encode")
    loss = lambda variables: VOCODER.apply(variables, bands, method="decode").sum()
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(jax.grad(loss)(variables)))
