import jax.numpy as jnp
import numpy as np
import pytest

from genjax.audio import (
    from_mel_bands,
    griffin_lim,
    hann_window,
    istft,
    log_mel_spectrogram,
    mel_filters,
    stft,
)

N_FFT, HOP = 128, 32


def test_magnitudes_are_approached():
    """A gliding tone in noise: the spectral convergence falls, and the sound's length is kept."""
    time = np.arange(2050) / 8000
    waveform = 0.5 * np.sin(2 * np.pi * (500 + 2000 * time) * time)
    waveform = waveform + 0.01 * np.random.default_rng(0).normal(size=time.shape)
    magnitudes = jnp.abs(stft(waveform[None, :, None], N_FFT, HOP))

    def convergence(num_steps):
        made = griffin_lim(magnitudes, N_FFT, HOP, num_steps=num_steps, length=2050)
        assert made.shape == (1, 2050, 1)
        error = jnp.abs(stft(made, N_FFT, HOP)) - magnitudes
        return float(jnp.linalg.norm(error) / jnp.linalg.norm(magnitudes))

    start, end = convergence(0), convergence(60)
    assert start > 0.3 and end < 0.1


def test_the_first_step_takes_the_phases_of_the_nearest_waveform():
    magnitudes = np.random.default_rng(0).uniform(size=(1, 9, 65, 1)).astype(np.complex64)
    form = dict(n_fft=N_FFT, hop=HOP, window=hann_window(100), padding=48)
    rebuilt = np.asarray(stft(istft(magnitudes, **form), **form, pad_mode="constant"))
    expected = istft(magnitudes * rebuilt / np.abs(rebuilt), **form)
    made = griffin_lim(magnitudes.real, **form, pad_mode="constant", num_steps=1)
    np.testing.assert_allclose(made, expected, atol=1e-4)  # float32, also of small magnitudes


def test_negative_magnitudes_of_mel_bands_are_none():
    filters = mel_filters(8000, N_FFT, 16)
    bands = np.random.default_rng(0).uniform(size=(1, 9, 16, 1)).astype(np.float32)
    solution = np.linalg.pinv(filters).T @ bands
    assert (solution < 0).mean() > 0.1
    made = from_mel_bands(bands, filters, HOP, num_steps=0, padding=48)
    expected = istft(np.complex64(np.maximum(solution, 0)), N_FFT, HOP, padding=48)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)  # float32 sums


@pytest.mark.parametrize("length", [2047, 2016, 1500])
def test_a_shorter_sound_is_the_beginning_of_the_whole(length):
    waveform = np.random.default_rng(0).normal(size=(1, 2048, 1))
    magnitudes = jnp.abs(stft(waveform, N_FFT, HOP))
    whole = griffin_lim(magnitudes, N_FFT, HOP, num_steps=4)
    shorter = griffin_lim(magnitudes, N_FFT, HOP, num_steps=4, length=length)
    assert whole.shape == (1, 2048, 1)
    np.testing.assert_allclose(shorter, whole[:, :length], atol=1e-5)


def test_silence():
    np.testing.assert_array_equal(griffin_lim(np.zeros((1, 5, 65, 1)), N_FFT, HOP, num_steps=2), 0)


def test_sound_of_mel_bands_has_about_these_bands():
    """Noise under a slow swell, whose bands vary little from bin to bin."""
    random, time = np.random.default_rng(0), np.arange(4000) / 8000
    noise = 0.1 * random.normal(size=time.shape) * (1.2 + np.sin(2 * np.pi * 2 * time))
    filters = mel_filters(8000, N_FFT, 16)
    bands = log_mel_spectrogram(noise[None, :, None], filters, HOP)
    made = from_mel_bands(np.exp(bands), filters, HOP, length=4000)
    assert made.shape == (1, 4000, 1)
    error = np.abs(log_mel_spectrogram(made, filters, HOP) - bands)
    assert error.mean() < 0.15  # nepers
    silent = from_mel_bands(np.zeros_like(bands), filters, HOP, length=4000)
    np.testing.assert_array_equal(silent, 0)


@pytest.mark.usefixtures("unchecked_annotations")
def test_arrays_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 65, 1\); expected \[batch frames 65 channels\]"):
        griffin_lim(np.zeros((5, 65, 1)), N_FFT, HOP)
    for bands in (np.zeros((5, 16, 1)), np.zeros((1, 5, 15, 1))):
        with pytest.raises(ValueError, match=r"bands have shape .*\[batch frames 16 channels\]"):
            from_mel_bands(bands, mel_filters(8000, N_FFT, 16), HOP)
