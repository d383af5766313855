"""Opus and MP3: higher bitrates are nearer, and nothing is delayed."""

import sys

import numpy as np
import pytest

from genjax.data.lossy_codecs import compress


def sweep(sample_rate, channels=1):
    """A rising tone in noise, of one second."""
    time = np.arange(sample_rate)[:, None] / sample_rate
    tone = 0.3 * np.sin(2 * np.pi * (300 * time + 400 * time**2) + np.arange(channels))
    noise = 0.02 * np.random.default_rng(0).normal(size=tone.shape)
    return np.rint((tone + noise) * 2**15).astype(np.int16)


def ratio(sound, original):
    """Return the ratio of signal and distortion, in dB."""
    original = original.astype(float)
    return 10 * np.log10(np.sum(original**2) / np.sum((sound - original) ** 2))


@pytest.mark.parametrize("codec", ["opus", "mp3"])
@pytest.mark.parametrize(("sample_rate", "channels"), [(8000, 1), (24_000, 1), (44_100, 2)])
def test_higher_bitrates_are_nearer(codec, sample_rate, channels):
    """A delay by a sample of 8 kHz alone would leave less than 15 dB."""
    sound, ratios = sweep(sample_rate, channels), []
    bitrates = (16_000, 32_000, 64_000) if channels == 1 else (64_000, 128_000, 256_000)
    for bitrate in bitrates:
        compressed = compress(sound, sample_rate, codec, bitrate)
        assert compressed.samples.shape == sound.shape and compressed.samples.dtype == np.int16
        assert compressed.bitrate == pytest.approx(bitrate, rel=0.06)
        ratios.append(ratio(compressed.samples, sound))
    assert ratios == sorted(ratios) and ratios[-1] > 15, ratios


def test_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="codec 'flac' is unknown: it is one of opus, mp3"):
        compress(sweep(8000), 8000, "flac", 8000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        compress(sweep(8000), 8000, "opus", 8000)
