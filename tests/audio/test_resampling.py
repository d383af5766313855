import math
from unittest import mock

import jax
import numpy as np
import pytest
import scipy.signal

from genjax import audio
from genjax.audio import resampling

resample = jax.jit(audio.resample, static_argnums=(1, 2))
RATES = {
    "half": (8, 4),
    "double": (4, 8),
    "44100_to_16000": (441, 160),
    "up": (160, 441),
    "coprime": (1999, 2003),
}


def direct_sum(x, rate, new_rate):
    """The definition, sample by sample in float64: a sinc under a Hann window of 6 zeros a side."""
    cutoff = 0.99 * min(rate, new_rate)
    n = np.arange(math.ceil(len(x) * new_rate / rate))[:, None]
    phase = cutoff * (n / new_rate - np.arange(len(x)) / rate)
    hann = np.where(np.abs(phase) < 6, 0.5 + 0.5 * np.cos(np.pi * phase / 6), 0)
    sinc = np.sin(np.pi * phase) / np.where(phase == 0, 1, np.pi * phase)
    return (cutoff / rate * np.where(phase == 0, 1, sinc) * hann) @ x


@pytest.mark.parametrize("rates", RATES)
def test_is_the_sum_of_its_definition(rates):
    rate, new_rate = RATES[rates]
    x = np.random.default_rng(0).uniform(-1, 1, (2, 700, 2))
    ours = resample(x, rate * 100, new_rate * 100)
    theirs = np.stack([direct_sum(each, rate, new_rate) for each in x])
    # float32 sums of up to 40 products of values up to 1
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 50, 1), (2, 0, 1), (1, 1, 3)])
def test_batches_and_waveforms_may_be_empty_or_of_one(shape):
    x = np.ones(shape, np.float32)
    expected = np.stack([direct_sum(each, 4, 8) for each in x]) if len(x) else np.zeros((0, 100, 1))
    np.testing.assert_allclose(resample(x, 4, 8), expected, atol=1e-6)


def test_filters_of_coprime_rates_hold_few_weights():
    """45 inputs and 32 outputs in each of 22 blocks; over all inputs they would be 4 million."""
    assert resampling._block_filters(6000, 6001, 701).weights.size < 50_000


def test_a_second_call_compiles_nothing():
    x = np.zeros((1, 37, 1), np.float32)
    with mock.patch.object(resampling, "sinc_kernel", wraps=resampling.sinc_kernel) as kernel:
        for _ in range(2):
            audio.resample(x, 3, 5)
    assert kernel.call_count == 1  # where `resample` is traced


@pytest.mark.parametrize("rates", RATES)
def test_tone_stays_a_tone(rates):
    """Far below the cutoff the kernel passes a tone, as the closed form and SciPy's filter do."""
    rate, new_rate = RATES[rates]
    tone = lambda rate, count: np.sin(2 * np.pi * 0.1 * min(RATES[rates]) * np.arange(count) / rate)
    x = tone(rate, 2000)
    ours = np.asarray(resample(x[None, :, None], rate, new_rate))[0, :, 0]
    inner = slice(len(ours) // 4, -len(ours) // 4)  # away from the borders' zeros
    # The window's side lobes pass 0.1 % of other frequencies.
    np.testing.assert_allclose(ours[inner], tone(new_rate, len(ours))[inner], atol=2e-3)
    theirs = scipy.signal.resample_poly(x, new_rate, rate)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=4e-3)


def test_tone_above_the_new_band_is_removed():
    x = np.sin(2 * np.pi * 0.35 * np.arange(1000))[None, :, None]
    assert np.abs(resample(x, 2, 1)[:, 50:-50]).max() < 2e-3
    assert np.abs(x[:, ::2]).max() > 0.9  # as dropping samples would not


def test_same_rate_changes_nothing():
    x = np.random.default_rng(0).uniform(-1, 1, (1, 50, 1)).astype(np.float32)
    np.testing.assert_array_equal(resample(x, sample_rate=8000, new_rate=8000), x)


def test_faults():
    with pytest.raises(ValueError, match="rates of 8000 and 0 Hz"):
        resample(np.zeros((1, 50, 1)), 8000, 0)
