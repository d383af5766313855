"""Spectra, mel bands, resampling and loudness of sound, as pure functions.

A waveform is `[batch samples channels]`, float32 in [−1, 1]. A spectrogram is `[batch frames bins
channels]`. Rates are in Hz (`sample_rate`), and times in seconds.
"""

from genjax.audio.loudness import loudness as loudness
from genjax.audio.mel import HTK as HTK
from genjax.audio.mel import SLANEY as SLANEY
from genjax.audio.mel import MelScale as MelScale
from genjax.audio.mel import log_mel_spectrogram as log_mel_spectrogram
from genjax.audio.mel import mel_filters as mel_filters
from genjax.audio.phases import from_mel_bands as from_mel_bands
from genjax.audio.phases import griffin_lim as griffin_lim
from genjax.audio.resampling import resample as resample
from genjax.audio.spectra import as_waveforms as as_waveforms
from genjax.audio.spectra import hann_window as hann_window
from genjax.audio.spectra import istft as istft
from genjax.audio.spectra import stft as stft
