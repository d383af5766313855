import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from genjax.audio import hann_window, istft, loudness, resample, stft

N_FFT, HOP = 64, 16
FORMS = {
    "centred": dict(),
    "zeros": dict(pad_mode="constant"),
    "half_hops": dict(padding=(N_FFT - HOP) // 2),
    "short_window": dict(window=hann_window(40)),
    "odd_hop": dict(hop=13),
}
FUNCTIONS = {
    "stft": lambda waveforms: stft(waveforms, N_FFT, HOP),
    "resample": lambda waveforms: resample(waveforms, 8000, 16_000),
    "loudness": lambda waveforms: loudness(waveforms, 8000),
}


@pytest.fixture(scope="module")
def waveforms():
    return np.random.default_rng(0).uniform(-1, 1, (2, 16 * HOP, 2)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_inverse_restores_the_waveform(waveforms, form):
    arguments = dict(n_fft=N_FFT, hop=HOP) | FORMS[form]
    spectra = stft(waveforms, **arguments)
    arguments.pop("pad_mode", None)
    restored = istft(spectra, **arguments)
    # The samples after the last whole hop are in no frame's centre.
    assert restored.shape[1] >= waveforms.shape[1] - arguments["hop"]
    kept = min(restored.shape[1], waveforms.shape[1])
    # float32: rounding of the transforms, of values up to 1
    np.testing.assert_allclose(restored[:, :kept], waveforms[:, :kept], atol=1e-6)
    whole = istft(spectra, **arguments, length=waveforms.shape[1])
    np.testing.assert_allclose(whole, waveforms, atol=1e-6)


def test_agrees_with_scipy(waveforms):
    """SciPy's frames are divided by the window's sum, and its borders are zeros."""
    window = scipy.signal.get_window("hann", N_FFT)
    np.testing.assert_allclose(hann_window(N_FFT), window, atol=1e-15)
    arguments = dict(window=window, nperseg=N_FFT, noverlap=N_FFT - HOP, axis=1)
    theirs = scipy.signal.stft(np.float64(waveforms), **arguments)[2] * window.sum()
    ours = stft(waveforms, N_FFT, HOP, pad_mode="constant")
    np.testing.assert_allclose(ours, theirs.transpose(0, 3, 1, 2), atol=1e-5)


def test_tone_lies_in_its_bin():
    """A cosine of bin 5 has the half window sum there, a quarter beside, and nothing elsewhere."""
    cosine = np.cos(2 * np.pi * 5 * np.arange(4 * N_FFT) / N_FFT)[None, :, None]
    spectrum = stft(cosine, N_FFT, N_FFT, padding=0)
    expected = np.zeros(N_FFT // 2 + 1)
    expected[[4, 5, 6]] = -N_FFT / 8, N_FFT / 4, -N_FFT / 8
    assert spectrum.shape == (1, 4, N_FFT // 2 + 1, 1)
    np.testing.assert_allclose(spectrum, np.tile(expected[:, None], (1, 4, 1, 1)), atol=1e-5)


def test_parseval(waveforms):
    """Without overlap and window, bins hold n_fft times the energy; inner ones count twice."""
    spectra = stft(waveforms, N_FFT, N_FFT, window=np.ones(N_FFT), padding=0)
    twice = np.full((N_FFT // 2 + 1, 1), 2.0)
    twice[[0, -1]] = 1
    energy = (twice * np.abs(spectra) ** 2).sum((1, 2)) / N_FFT
    np.testing.assert_allclose(energy, (waveforms**2).sum(1), rtol=1e-5)


def test_inverse_is_the_least_squares_solution():
    """Frames that no waveform has: any other waveform's spectrogram is farther away."""
    real, imaginary = np.random.default_rng(0).normal(size=(2, 1, 9, N_FFT // 2 + 1, 1))
    spectra = (real + 1j * imaginary).astype(np.complex64)
    # Frames that are not padded, so that all of the waveform counts; its first sample has no
    # window, so take one that never vanishes.
    form = dict(n_fft=N_FFT, hop=HOP, padding=0, window=scipy.signal.windows.hamming(N_FFT))
    nearest = istft(spectra, **form)
    frames = jnp.fft.irfft(spectra, N_FFT, axis=2)
    window = jnp.asarray(form["window"], jnp.float32)[:, None]

    @jax.grad
    def gradient(waveform):
        ours = stft(waveform, **form)
        return jnp.sum((jnp.fft.irfft(ours, N_FFT, axis=2) - frames) ** 2)

    assert np.abs(gradient(jnp.zeros_like(nearest))).max() > 0.1
    np.testing.assert_allclose(gradient(nearest), 0, atol=1e-5)
    assert window.min() > 0


def test_gradient_is_finite_at_silence():
    loss = lambda x: jnp.abs(stft(x, N_FFT, HOP)).sum()
    gradient = jax.grad(loss)(jnp.zeros((1, 100, 1)))
    assert np.isfinite(gradient).all()


def test_batches_may_be_empty():
    empty = jax.ShapeDtypeStruct((0, 8000, 2), jnp.float32)
    restored = lambda waveforms: istft(stft(waveforms, N_FFT, HOP), N_FFT, HOP)
    assert jax.eval_shape(restored, empty).shape == (0, 8000, 2)
    assert jax.eval_shape(lambda waveforms: loudness(waveforms, 8000), empty).shape == (0,)


def test_faults(waveforms):
    with pytest.raises(ValueError, match=r"20 samples; frames of 64 .*need 33 or more"):
        stft(waveforms[:, :20], N_FFT, HOP)
    with pytest.raises(ValueError, match="window has 65 samples"):
        stft(waveforms, N_FFT, HOP, window=np.ones(65))
    with pytest.raises(ValueError, match="1 or more samples; got n_fft=64 and hop=0"):
        stft(waveforms, N_FFT, 0)
    with pytest.raises(ValueError, match="1 or more samples; got n_fft=0 and hop=16"):
        stft(waveforms, 0, HOP)
    spectra = stft(waveforms, N_FFT, HOP)
    with pytest.raises(ValueError, match="1 or more samples; got n_fft=64 and hop=0"):
        istft(spectra, N_FFT, 0)
    invert = functools.partial(istft, spectra, hop=HOP)
    with pytest.raises(
        ValueError, match=r"33, 2\); expected \[batch frames 65 channels\] for .* 128"
    ):
        invert(128)
    with pytest.raises(ValueError, match="give a length between 1 and 288"):
        invert(N_FFT, length=289)
    with pytest.raises(ValueError, match="leave sample 0 uncovered"):
        invert(N_FFT, padding=0)
    with pytest.raises(ValueError, match="uncovered: take smaller hops"):
        istft(spectra, N_FFT, 64)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_waveforms_are_floats_with_three_axes(function, unchecked_annotations):
    for mistaken in (np.zeros((2, 8000)), np.zeros(8000), np.zeros((2, 8000, 1), np.int16)):
        given = re.escape(f"{jnp.asarray(mistaken).dtype} {list(mistaken.shape)}")
        with pytest.raises(ValueError, match=rf"\[batch samples channels\]; got {given}"):
            FUNCTIONS[function](mistaken)
