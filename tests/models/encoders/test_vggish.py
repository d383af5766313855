import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.vggish import VGGish, mel_matrix, vggish_features, vggish_patches

RATE = 16_000


def test_parameter_count():
    """Six convolutions of 4,499,712 parameters, and three embedding layers of 67,641,472.

    3·3·(1·64 + 64·128 + 128·256 + 256·256 + 256·512 + 512·512) + 64 + 128 + 2·256 + 2·512;
    (6·4·512 + 1)·4096 + 4097·4096 + 4097·128.
    """
    patches = jax.ShapeDtypeStruct((1, 96, 64), jnp.float32)
    params = jax.eval_shape(VGGish().init, jax.random.key(0), patches)["params"]
    count = lambda names: sum(a.size for name in names for a in jax.tree.leaves(params[name]))
    embeddings = ["fc1_1", "fc1_2", "fc2"]
    assert count(embeddings) == 67_641_472
    assert count(params.keys() - embeddings) == 4_499_712
    assert count(params) == 72_141_184


def published_front_end(x):
    """The published front end of samples at 16 kHz, frame by frame in float64."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    count = 1 + (len(x) - 400) // 160
    frames = np.stack([x[160 * i : 160 * i + 400] for i in range(count)])
    magnitudes = np.abs(np.fft.rfft(frames * hann, 512))
    mel = lambda hertz: 1127.0 * np.log(1 + hertz / 700.0)
    bins, edges = mel(np.linspace(0, 8000, 257)), np.linspace(mel(125.0), mel(7500.0), 66)
    matrix = np.empty((257, 64))
    for i in range(64):
        low, centre, high = edges[i : i + 3]
        slopes = (bins - low) / (centre - low), (high - bins) / (high - centre)
        matrix[:, i] = np.maximum(0, np.minimum(*slopes))
    matrix[0] = 0
    return np.log(magnitudes @ matrix + 0.01), matrix


def test_front_end_is_the_published_one():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32_000))
    expected, matrix = zip(*map(published_front_end, x), strict=True)
    # HTK's 2595·log₁₀ and 1127·ln differ by 3e-6.
    np.testing.assert_allclose(mel_matrix(), matrix[0], atol=1e-4)
    patches = vggish_patches(jnp.asarray(x[..., None], jnp.float32), RATE)
    assert patches.shape == (2, 2, 96, 64)  # 198 frames hold two patches
    np.testing.assert_allclose(
        patches.reshape(2, 192, 64), [each[:192] for each in expected], atol=1e-4
    )


def test_other_rates_and_channels():
    """A tone at 48 kHz in one of two channels is the tone of half amplitude at 16 kHz."""
    tone = lambda rate, amplitude: (
        amplitude * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    )
    stereo = np.stack([tone(48_000, 1), np.zeros(48_000, np.float32)], axis=-1)
    ours = vggish_patches(jnp.asarray(stereo[None]), 48_000)
    expected = vggish_patches(jnp.asarray(tone(16_000, 0.5)[None, :, None]), RATE)
    # The band of the tone; resampling has ripples of 0.1 %.
    assert np.abs(ours - expected)[expected > 2].max() < 5e-3
    assert (expected > 2).sum() > 96


def test_short_sounds_are_followed_by_silence():
    short = jax.eval_shape(
        functools.partial(vggish_patches, sample_rate=8000), jnp.ones((3, 100, 1))
    )
    assert short.shape == (3, 1, 96, 64)
    patches = vggish_patches(jnp.ones((1, 8000, 1)), RATE)
    np.testing.assert_allclose(patches[0, 0, 50:], np.log(0.01), rtol=1e-5)


@pytest.mark.parametrize(("samples", "count"), [(15_600, 1), (15_600 + 15_359, 1), (30_960, 2)])
def test_number_of_features(samples, count):
    patches = jax.ShapeDtypeStruct((1, 96, 64), jnp.float32)
    variables = jax.eval_shape(VGGish().init, jax.random.key(0), patches)
    features = functools.partial(vggish_features, sample_rate=RATE)
    assert jax.eval_shape(features, variables, jnp.zeros((2, samples, 1))).shape == (2, count, 128)
