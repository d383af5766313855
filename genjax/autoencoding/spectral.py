"""Distances of sounds by their spectra, as losses of autoencoders and vocoders.

The distances compare magnitudes at several resolutions, because no single frame length resolves
both the time and the pitch of a sound.
"""

import functools
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax import audio
from genjax.autoencoding.reconstruction import l1

Sounds = Float[Array, "batch samples channels"]


def multi_scale_mel(
    x: Sounds,
    y: Sounds,
    sample_rate: int,
    n_ffts: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
    num_mels: Sequence[int] = (5, 10, 20, 40, 80, 160, 320),
) -> Float[Array, " batch"]:
    """Return Σ over resolutions of the mean |log₁₀ mel(x) − log₁₀ mel(y)|, `[batch]`.

    Kumar et al. 2023, "DAC", section 3.5. Frames overlap by three quarters. Mel bands of
    magnitudes below 1e-5 count as 1e-5.

    DAC's numbers of bands are chosen so that every band holds a frequency at 44.1 kHz. At 48 kHz
    the two shortest frames have a band too many. Bands without a frequency are left out of the
    mean, in which DAC's code would count them as equal.

    Args:
        sample_rate: in Hz.
        n_ffts: samples of the frames of each resolution.
        num_mels: number of mel bands of each resolution, with those that are left out.
    """

    def distance(n_fft: int, mels: int) -> Float[Array, " batch"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bands without a frequency
            filters = audio.mel_filters(sample_rate, n_fft, mels)
        filters = filters[:, filters.any(axis=0)]
        log_mel = functools.partial(
            audio.log_mel_spectrogram, filters=filters, hop=n_fft // 4, log=jnp.log10
        )
        return l1(log_mel(x), log_mel(y))

    return sum(distance(*sizes) for sizes in zip(n_ffts, num_mels, strict=True))


def multi_resolution_stft(
    x: Sounds, y: Sounds, n_ffts: Sequence[int] = (512, 1024, 2048)
) -> Float[Array, " batch"]:
    """Return spectral convergence plus log-magnitude distance, a mean over resolutions, `[batch]`.

    Yamamoto et al. 2020, "Parallel WaveGAN", equations 3 to 6: ‖|Y| − |X|‖ / ‖|Y|‖ in Frobenius
    norms, plus the mean of |ln|Y| − ln|X||, for the spectra X of `x` and Y of the original `y`.
    Frames overlap by three quarters. Magnitudes below 1e-5 count as 1e-5.

    Args:
        n_ffts: samples of the frames of each resolution.
    """

    def distance(n_fft: int) -> Float[Array, " batch"]:
        X, Y = (jnp.abs(audio.stft(each, n_fft, n_fft // 4)) for each in (x, y))
        X, Y = jnp.maximum(X, 1e-5), jnp.maximum(Y, 1e-5)
        convergence = _norm(Y - X) / _norm(Y)
        return convergence + l1(jnp.log(Y), jnp.log(X))

    return sum(map(distance, n_ffts)) / len(n_ffts)


def _norm(spectra: Float[Array, "batch frames bins channels"]) -> Float[Array, " batch"]:
    return jnp.sqrt(jnp.square(spectra).sum((1, 2, 3)) + 1e-20)  # has a slope at 0
