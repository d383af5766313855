import jax.numpy as jnp
import numpy as np
import pytest

from genjax.audio import (
    HTK,
    SLANEY,
    from_mel_bands,
    hann_window,
    log_mel_spectrogram,
    mel_filters,
    stft,
)

RATE, N_FFT = 16_000, 512


def test_scales_have_their_published_anchors():
    np.testing.assert_allclose(SLANEY.from_hertz(np.array([0, 200, 1000, 6400])), [0, 3, 15, 42])
    np.testing.assert_allclose(HTK.from_hertz(np.array([0, 700])), [0, 2595 * np.log10(2)])
    assert abs(HTK.from_hertz(1000) - 1000) < 0.1  # 1 kHz is 1000 mel
    hertz = np.linspace(0, 8000, 41)
    for scale in (SLANEY, HTK):
        np.testing.assert_allclose(scale.to_hertz(scale.from_hertz(hertz)), hertz, atol=1e-9)


@pytest.mark.parametrize("scale", [SLANEY, HTK], ids=["slaney", "htk"])
def test_filters_are_triangles(scale):
    """On a grid fine enough, filters peak at equal steps of mel, and add up to 1 between."""
    filters = mel_filters(RATE, 2**16, 10, low=100, high=7000, scale=scale, unit_area=False)
    peaks = filters.argmax(0) * RATE / 2**16
    steps = np.diff(scale.from_hertz(np.array([100, *peaks, 7000])))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.01)
    frequencies = np.arange(2**15 + 1) * RATE / 2**16
    between = (frequencies >= peaks[0]) & (frequencies <= peaks[-1])
    # Peaks are found to half a bin of 0.12 Hz, on slopes of 100 Hz or more.
    np.testing.assert_allclose(filters[between].sum(1), 1, atol=2e-3)
    assert not filters[(frequencies < 100) | (frequencies > 7000)].any()


def test_unit_area():
    filters = mel_filters(RATE, 2**16, 10)
    np.testing.assert_allclose(filters.sum(0) * RATE / 2**16, 1, rtol=1e-4)
    assert filters[1, 0] > 0 and filters[-2, -1] > 0  # by default from 0 Hz to half the rate


def test_tone_in_its_band():
    """The band of a tone is the filter's value there times the window's half sum."""
    frequency = 64 * RATE / N_FFT  # 2 kHz
    tone = 0.5 * np.cos(2 * np.pi * frequency * np.arange(4 * N_FFT) / RATE)[None, :, None]
    filters = mel_filters(RATE, N_FFT, 20, unit_area=False)
    logs = log_mel_spectrogram(tone, filters, 128, padding=0, log=jnp.log10, clamp=1e-3)
    amplitudes = np.array([0.25, 0.5, 0.25]) * 0.5 * hann_window(N_FFT).sum()
    expected = np.log10(np.maximum(amplitudes @ filters[63:66], 1e-3))
    assert (expected == -3).any() and (expected > 0).any()
    # A band without the tone holds its float32 rounding, which the clamp hides.
    np.testing.assert_allclose(logs[0, 3, :, 0], expected, atol=1e-4)
    powers = log_mel_spectrogram(tone, filters, 128, padding=0, power=2)
    expected = np.log(np.maximum(amplitudes**2 @ filters[63:66], 1e-5))
    np.testing.assert_allclose(powers[0, 3, :, 0], expected, atol=1e-3)
    # Frames are those of `stft` in the same form; the padding is in the first one.
    form = dict(window=hann_window(300), padding=200, pad_mode="constant")
    expected = np.abs(stft(tone, N_FFT, 128, **form)).swapaxes(2, 3) @ filters
    logs = log_mel_spectrogram(tone, filters, 128, **form).swapaxes(2, 3)
    np.testing.assert_allclose(logs, np.log(np.maximum(expected, 1e-5)), atol=1e-3)


def test_silence_is_the_clamp():
    logs = log_mel_spectrogram(np.zeros((1, 1000, 2)), mel_filters(RATE, N_FFT, 8), 128)
    assert logs.shape == (1, 8, 8, 2)
    np.testing.assert_allclose(logs, np.log(1e-5), rtol=1e-6)


def test_faults():
    for ends in (dict(high=9000), dict(low=-1), dict(low=500, high=500)):
        with pytest.raises(ValueError, match="give 0 <= low < high <= 8000"):
            mel_filters(RATE, N_FFT, 8, **ends)


@pytest.mark.usefixtures("unchecked_annotations")
def test_transposed_filters_are_refused():
    """They would set frames of 2·(bands − 1) samples."""
    filters, sounds = mel_filters(RATE, N_FFT, 8), np.zeros((1, 1000, 1))
    words = rf"filters have shape \(8, {N_FFT // 2 + 1}\); expected \[bins num_mels\].*transpose"
    with pytest.raises(ValueError, match=words):
        log_mel_spectrogram(sounds, filters.T, 128)
    with pytest.raises(ValueError, match=words):
        from_mel_bands(np.zeros((1, 3, 8, 1)), filters.T, 128)


def test_empty_bands_are_counted():
    """EnCodec's 64 bands at its shortest frames: librosa counts 37 empty filters, and warns too."""
    with pytest.warns(UserWarning, match="37 of 64 mel bands hold no frequency of an FFT of 32"):
        filters = mel_filters(24_000, 32, 64)
    assert np.sum(~filters.any(axis=0)) == 37
    assert log_mel_spectrogram(np.zeros((1, 64, 1)), filters, 32).shape == (1, 3, 64, 1)
