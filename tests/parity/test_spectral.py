"""`genjax.audio` compared with librosa and PyTorch.

Measured: short-time Fourier transforms differ by less than 3e-6 of their largest value, mel filters
by rounding, log-mel spectrograms by less than 1e-5.
"""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from genjax import audio

N_FFT, HOP, RATE = 256, 64, 16_000


@pytest.fixture(scope="module")
def waveforms():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2000, 1)).astype(np.float32)


def close(ours, theirs, tolerance=1e-5):
    """Whether values differ by less than 1e-5 of the largest value: float32 on both sides."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
@pytest.mark.parametrize("size", [N_FFT, 200])
def test_stft(waveforms, pad_mode, size):
    window = audio.hann_window(size)
    ours = audio.stft(waveforms, N_FFT, HOP, window=window, pad_mode=pad_mode)[..., 0]
    arguments = dict(hop_length=HOP, win_length=size, pad_mode=pad_mode, center=True)
    theirs = torch.stft(
        torch.from_numpy(waveforms[..., 0]),
        N_FFT,
        window=torch.hann_window(size),
        return_complex=True,
        **arguments,
    )
    close(ours, theirs.mT)
    close(ours, librosa.stft(waveforms[..., 0], n_fft=N_FFT, **arguments).swapaxes(1, 2))


def test_stft_without_padding(waveforms):
    ours = audio.stft(waveforms, N_FFT, HOP, padding=0)[..., 0]
    theirs = librosa.stft(waveforms[..., 0], n_fft=N_FFT, hop_length=HOP, center=False)
    close(ours, theirs.swapaxes(1, 2))


def test_istft_of_any_spectrogram():
    """Both divide by the same sum of squared windows, also where no waveform has the frames."""
    real, imaginary = np.random.default_rng(0).normal(size=(2, 2, 9, N_FFT // 2 + 1))
    imaginary[..., [0, -1]] = 0
    spectra = (real + 1j * imaginary).astype(np.complex64)
    theirs = torch.istft(
        torch.from_numpy(spectra).mT, N_FFT, hop_length=HOP, window=torch.hann_window(N_FFT)
    )
    close(audio.istft(spectra[..., None], N_FFT, HOP)[..., 0], theirs)
    theirs = librosa.istft(spectra.swapaxes(1, 2), hop_length=HOP, n_fft=N_FFT)
    close(audio.istft(spectra[..., None], N_FFT, HOP)[..., 0], theirs)


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("unit_area", [False, True])
def test_mel_filters(htk, unit_area):
    scale = audio.HTK if htk else audio.SLANEY
    form = dict(htk=htk, norm="slaney" if unit_area else None)
    for low, high in ((0, None), (125, 7500)):
        theirs = librosa.filters.mel(
            sr=RATE, n_fft=1024, n_mels=80, fmin=low, fmax=high, dtype=np.float64, **form
        )
        ours = audio.mel_filters(
            RATE, 1024, 80, low=low, high=high, scale=scale, unit_area=unit_area
        )
        np.testing.assert_allclose(ours, theirs.T, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_log_mel_spectrogram(waveforms, power):
    filters = audio.mel_filters(RATE, N_FFT, 20)
    ours = audio.log_mel_spectrogram(waveforms, filters, HOP, power=power, log=jnp.log10)
    arguments = dict(n_fft=N_FFT, hop_length=HOP, n_mels=20, pad_mode="reflect")
    theirs = librosa.feature.melspectrogram(y=waveforms[..., 0], sr=RATE, power=power, **arguments)
    close(ours[..., 0], np.log10(np.maximum(theirs, 1e-5)).swapaxes(1, 2))


def test_hifi_gan_form(waveforms):
    """HiFi-GAN pads by (n_fft − hop) / 2 and takes frames within; written here in torch."""
    padded = torch.nn.functional.pad(
        torch.from_numpy(waveforms[..., 0]), ((N_FFT - HOP) // 2,) * 2, mode="reflect"
    )
    window = torch.hann_window(N_FFT)
    spectra = torch.stft(padded, N_FFT, HOP, window=window, center=False, return_complex=True)
    basis = librosa.filters.mel(sr=22050, n_fft=N_FFT, n_mels=20, fmin=0, fmax=8000)
    theirs = (torch.from_numpy(basis) @ spectra.abs()).clamp(1e-5).log()
    filters = audio.mel_filters(22050, N_FFT, 20, high=8000)
    form = dict(padding=(N_FFT - HOP) // 2)
    close(audio.log_mel_spectrogram(waveforms, filters, HOP, **form)[..., 0], theirs.mT)


def test_resampling_of_band_limited_sound():
    """Smooth noise below a quarter of the lower band: librosa's polyphase filter passes it too."""
    noise = np.random.default_rng(0).normal(size=4410)
    noise = scipy.signal.sosfiltfilt(scipy.signal.butter(8, 2000, fs=44_100, output="sos"), noise)
    noise = (noise / np.abs(noise).max()).astype(np.float32)
    theirs = librosa.resample(noise, orig_sr=44_100, target_sr=16_000, res_type="polyphase")
    ours = audio.resample(noise[None, :, None], 44_100, 16_000)[0, :, 0]
    assert len(ours) == len(theirs)
    # The windowed sinc's ripple in the passed band is 0.1 %.
    close(ours[50:-50], theirs[50:-50], 2e-3)


# Outputs of `torchaudio.functional.resample` 2.11.0 for 300 normal numbers in float64: their count,
# four of them, and the sum of their magnitudes. They are kept here, since torchaudio has no release
# for the PyTorch that the tests install.
TORCHAUDIO = {
    (44_100, 16_000): (109, [0.1609681, -0.0143197, 0.1709765, -0.2201498], 53.60319),
    (16_000, 44_100): (827, [0.1205884, -0.0313224, -0.0348195, 0.521412], 647.6191),
    (22_050, 16_000): (218, [-0.0299286, 0.2318496, 0.180893, 0.3219693], 146.10487),
    (48_000, 16_000): (100, [0.115653, 0.0704217, 0.1771796, -0.2149258], 46.75921),
    (8_000, 16_000): (600, [0.1205884, -0.0910337, -0.2620941, 0.7917624], 471.45364),
}


@pytest.mark.parametrize("rates", TORCHAUDIO)
def test_resampling_is_torchaudios(rates):
    count, values, total = TORCHAUDIO[rates]
    noise = np.random.default_rng(0).normal(size=300)
    ours = np.asarray(audio.resample(noise[None, :, None], *rates))[0, :, 0]
    assert len(ours) == count
    close(ours[[0, 1, count // 2, -1]], values, 1e-6)
    close(np.abs(ours).sum(dtype=np.float64), total, 1e-6)


def test_griffin_lim(waveforms):
    """Both start from phases of 0; steps amplify rounding, so there are few."""
    magnitudes = np.abs(audio.stft(waveforms, N_FFT, HOP))
    ours = audio.griffin_lim(magnitudes, N_FFT, HOP, num_steps=4)[..., 0]
    theirs = librosa.griffinlim(
        np.float64(magnitudes[..., 0].swapaxes(1, 2)),
        n_iter=4,
        hop_length=HOP,
        init=None,
        pad_mode="reflect",
    )
    close(ours, theirs, 1e-4)
