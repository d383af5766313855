"""Distances of spectra, for which tones have closed forms."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial import feature_matching
from genjax.autoencoding import multi_resolution_stft, multi_scale_mel

RATE = 8000
NOISE = jax.random.normal(jax.random.key(0), (2, 4096, 1))


def test_ten_times_louder_is_one_decade_in_every_mel_band():
    distance = jax.jit(lambda x, y: multi_scale_mel(x, y, RATE, (256, 512), (10, 20)))
    # the sum of two resolutions, of differences of log₁₀ 10 = 1; float32
    np.testing.assert_allclose(distance(10 * NOISE, NOISE), 2.0, rtol=1e-4)
    np.testing.assert_array_equal(distance(NOISE, NOISE), 0.0)
    # bands below 1e-5 count as 1e-5
    np.testing.assert_array_equal(distance(1e-9 * NOISE, 0 * NOISE), 0.0)


@pytest.mark.parametrize(
    ("rate", "n_ffts", "num_mels"), [(24_000, (32,), (64,)), (48_000, (32, 64), (5, 10))]
)
def test_bands_without_a_frequency_are_left_out(rate, n_ffts, num_mels):
    """10 dB are half a decade in every other band, and nothing is warned of.

    These are EnCodec's 64 bands at its shortest frames, of which librosa counts 37 empty ones, and
    DAC's shortest frames at 48 kHz, with one each.
    """
    distance = multi_scale_mel(10**0.5 * NOISE, NOISE, rate, n_ffts, num_mels)
    np.testing.assert_allclose(distance, 0.5 * len(n_ffts), rtol=1e-4)


def test_e_times_louder_is_one_neper_and_a_convergence_of_e_less_one():
    distance = jax.jit(multi_resolution_stft)
    expected = math.e - 1 + 1
    np.testing.assert_allclose(distance(math.e * NOISE, NOISE), expected, rtol=1e-4)
    np.testing.assert_allclose(distance(NOISE, NOISE), 0.0, atol=1e-6)
    # Magnitudes below 1e-5 count as 1e-5. Those of noise are √(3·512/8) = 14 times its deviation
    # or more, as the window's mean square is 3/8.
    np.testing.assert_allclose(distance(1e-9 * NOISE, 0 * NOISE), 0.0, atol=1e-6)
    assert np.all(distance(1e-6 * NOISE, 0 * NOISE) > 0.3)


def test_frames_overlap_by_three_quarters():
    """A click is in four frames, which alone change with its height."""
    click, frames = jnp.zeros((1, 4096, 1)).at[:, 2080].set(1e3), {256: 65, 512: 33}
    mel = multi_scale_mel(10 * click, click, RATE, tuple(frames), (10, 20))
    np.testing.assert_allclose(mel, sum(4 / count for count in frames.values()), rtol=1e-5)
    for n_fft, count in frames.items():
        distance = multi_resolution_stft(math.e * click, click, (n_fft,))
        np.testing.assert_allclose(distance, math.e - 1 + 4 / count, rtol=1e-5)


def test_the_resolutions_are_the_published_ones():
    """Those of DAC's base config, and of Parallel WaveGAN's three FFTs."""
    default = lambda function, name: inspect.signature(function).parameters[name].default
    assert default(multi_scale_mel, "n_ffts") == (32, 64, 128, 256, 512, 1024, 2048)
    assert default(multi_scale_mel, "num_mels") == (5, 10, 20, 40, 80, 160, 320)
    assert default(multi_resolution_stft, "n_ffts") == (512, 1024, 2048)


@pytest.mark.parametrize("name", ["mel", "stft"])
def test_slopes_are_finite_also_of_silence(name):
    distance = {
        "mel": lambda x, y: multi_scale_mel(x, y, RATE, (256,), (10,)),
        "stft": lambda x, y: multi_resolution_stft(x, y, (256,)),
    }[name]
    slope = jax.jit(jax.grad(lambda x, y: distance(x, y).sum()))
    silence = jnp.zeros_like(NOISE)
    for x, y in ((silence, NOISE), (silence, silence), (NOISE, silence), (NOISE, NOISE)):
        assert np.isfinite(slope(x, y)).all()
    assert np.abs(slope(2 * NOISE, NOISE)).max() > 0


def test_features_are_matched_layer_by_layer():
    real = [[jnp.array([[1.0, 2.0]])], [jnp.array([[3.0]]), jnp.array([[0.0, 0.0]])]]
    fake = [[jnp.array([[2.0, 4.0]])], [jnp.array([[0.0]]), jnp.array([[1.0, -1.0]])]]
    assert feature_matching(real, fake) == 1.5 + 3 + 1
    by_real, by_fake = jax.grad(feature_matching, argnums=(0, 1))(real, fake)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_real))
    np.testing.assert_array_equal(by_fake[0][0], [[0.5, 0.5]])
    np.testing.assert_array_equal(by_fake[1][0], [[-1.0]])


def test_feature_matching_of_bfloat16_is_summed_in_float32():
    """A sum of bfloat16 does not grow from 2 by 1/256."""
    real = [jnp.full((1, 4), a, jnp.bfloat16) for a in (2, *[1 / 256] * 16)]
    assert feature_matching(real, [jnp.zeros_like(a) for a in real]) == 2 + 16 / 256
