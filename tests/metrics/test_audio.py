import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from genjax import metrics
from genjax.audio import mel_filters

RATE = 16_000
# Yamamoto et al. 2020, table 1: frames, hops and windows of 1,024, 120 and 600 samples, and so on.
RESOLUTIONS = (1024, 120, 600), (2048, 240, 1200), (512, 50, 240)


@pytest.fixture(scope="module")
def noise():
    """White noise, whose powers are far above the floor."""
    return 0.3 * np.random.default_rng(0).normal(size=(2, 3000, 2))


def test_distances_of_a_scaled_copy(noise):
    """A copy at half the amplitude is 6.02 dB away in every bin, and ln 2 in every logarithm."""
    halved = 0.5 * noise
    np.testing.assert_allclose(
        metrics.log_spectral_distance(halved, noise), 20 * np.log10(2), rtol=1e-3
    )
    convergence, log_magnitude = metrics.multi_resolution_stft_distance(halved, noise)
    np.testing.assert_allclose(convergence, 0.5, rtol=1e-3)
    np.testing.assert_allclose(log_magnitude, np.log(2), rtol=1e-3)
    mel = metrics.mel_distance(halved, noise, RATE, num_mels=20)
    np.testing.assert_allclose(mel, np.log(2), rtol=1e-5)
    assert (metrics.si_sdr(halved, noise) > 100).all()


def test_equal_waveforms_have_no_distance(noise):
    for distance in (
        metrics.log_spectral_distance(noise, noise),
        *metrics.multi_resolution_stft_distance(noise, noise),
        metrics.mel_distance(noise, noise, RATE, num_mels=20),
    ):
        np.testing.assert_array_equal(distance, [0, 0])


def spectra(x, n_fft, hop, size):
    """SciPy's centred spectra with mirrored borders, `[batch channels bins frames]`, in float64."""
    window = np.pad(scipy.signal.get_window("hann", size), (n_fft - size) // 2)
    form = dict(window=window, nperseg=n_fft, noverlap=n_fft - hop, axis=1)
    form |= dict(boundary="even", padded=False)
    return scipy.signal.stft(x, **form)[2].swapaxes(1, 2) * window.sum()


def test_spectral_distances_of_unlike_sounds(noise):
    """The formulas once more, in float64 over SciPy's spectra."""
    other = 0.3 * np.random.default_rng(1).normal(size=noise.shape)
    x, y = (np.abs(spectra(each, 2048, 512, 2048)) for each in (other, noise))
    expected = np.sqrt(((20 * np.log10(x / y)) ** 2).mean(2)).mean((1, 2))
    measured = metrics.log_spectral_distance(other, noise)
    np.testing.assert_allclose(measured, expected, rtol=1e-3)
    measured = metrics.log_spectral_distance(0 * noise, noise)  # silence counts as powers of 1e-7
    expected = np.sqrt(((20 * np.log10(y) + 70) ** 2).mean(2)).mean((1, 2))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    convergences, logs = [], []
    for resolution in RESOLUTIONS:
        x, y = (np.abs(spectra(each, *resolution)) for each in (other, noise))
        norm = lambda a: np.sqrt((a**2).sum((2, 3)))
        convergences.append((norm(x - y) / norm(y)).mean(1))
        logs.append(np.abs(np.log(x / y)).mean((1, 2, 3)))
    measured = metrics.multi_resolution_stft_distance(other, noise)
    np.testing.assert_allclose(measured.convergence, np.mean(convergences, 0), rtol=1e-4)
    np.testing.assert_allclose(measured.log_magnitude, np.mean(logs, 0), rtol=1e-3)
    # HiFi-GAN's 80 bands of frames of 1,024 samples, 256 apart.
    filters = mel_filters(RATE, 1024, 80)
    bands = [
        np.abs(spectra(each, 1024, 256, 1024)).swapaxes(2, 3) @ filters for each in (other, noise)
    ]
    expected = np.abs(np.diff(np.log(np.maximum(bands, 1e-5)), axis=0)[0]).mean((1, 2, 3))
    np.testing.assert_allclose(metrics.mel_distance(other, noise, RATE), expected, rtol=1e-4)


def test_known_noise_gives_known_ratios(noise):
    """Distortion at a right angle to the original, at −20 dB and 0 dB of its energy."""
    original = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    other = np.random.default_rng(1).normal(size=noise.shape)
    other -= (other * original).sum(1, keepdims=True) * original
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    amplitude = np.array([0.1, 1])[:, None, None]
    ratios = metrics.si_sdr(3 * (original + amplitude * other), original)
    np.testing.assert_allclose(ratios, [20, 0], atol=1e-3)
    # Channels of 20 dB and 0 dB, averaged.
    amplitude = np.array([0.1, 1])[None, None]
    ratios = metrics.si_sdr(original + amplitude * other, original)
    np.testing.assert_allclose(ratios, 10, atol=1e-3)
    assert (metrics.si_sdr(0 * original, original) == -np.inf).all()
    # An exact copy may have no distortion at all. A silent channel makes the mean −∞, never NaN.
    both, silent = np.stack([100 * original[0]] * 2), np.array([[[1, 1]], [[1, 0]]])
    ratios = metrics.si_sdr(both * silent, both * silent)
    assert 100 < ratios[0] < np.inf and ratios[1] == -np.inf


def test_gradients_of_losses_are_finite_at_silence():
    @jax.jit
    @jax.grad
    def gradient(x, target):
        spectral = sum(metrics.multi_resolution_stft_distance(x, target))
        mel = metrics.mel_distance(x, target, RATE, num_mels=20)
        return jnp.sum(spectral + mel + metrics.log_spectral_distance(x, target))

    tone = jnp.sin(jnp.arange(2000) / 5)[None, :, None]
    silence = jnp.zeros_like(tone)
    for x, target in ((silence, silence), (silence, tone), (tone, silence), (tone, tone)):
        assert np.isfinite(gradient(x, target)).all()
    assert np.abs(gradient(tone, silence)).max() > 0
    assert np.isnan(metrics.log_spectral_distance(tone.at[0, 9].set(np.nan), tone)).all()


def test_faults(noise, unchecked_annotations):
    with pytest.raises(ValueError, match="expected the same .batch samples channels"):
        metrics.si_sdr(noise, noise[:1])
    with pytest.raises(ValueError, match="got int16 .*convert int16 by genjax.data.sound_to_float"):
        metrics.log_spectral_distance(*[np.int16(2**15 * noise)] * 2)
