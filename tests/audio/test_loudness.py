import numpy as np
import pytest
import scipy.signal

from genjax.audio import loudness
from genjax.audio.loudness import k_weighting

# ITU-R BS.1770-4, tables 1 and 2: the filters' coefficients at 48 kHz.
SHELF = (
    [1.53512485958697, -2.69169618940638, 1.19839281085285],
    [1, -1.69065929318241, 0.73248077421585],
)
HIGH_PASS = [1, -2, 1], [1, -1.99004745483398, 0.99007225036621]
HIGH_PASS_CORNER, SHELF_CORNER = 38, 1682  # Hz
# At low rates the bilinear transform bends the shelf's corner, 1.7 kHz; meters may err by 0.1 LU.
TOLERANCES = {48_000: 0.005, 44_100: 0.01, 16_000: 0.05}


def tone(rate, seconds=2.0, frequency=997, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def test_response_is_that_of_the_published_coefficients():
    frequencies = np.linspace(1, 23_999, 500)
    expected = np.prod(
        [scipy.signal.freqz(*each, frequencies, fs=48_000)[1] for each in (SHELF, HIGH_PASS)],
        axis=0,
    )
    # The standard prints 14 decimals; near 0 Hz they cancel.
    np.testing.assert_allclose(k_weighting(frequencies, 48_000), expected, rtol=1e-8)


@pytest.mark.parametrize("rate", [44_100, 16_000, 8000])
def test_filters_have_the_same_corners_at_every_rate(rate):
    """The bilinear transform is exact at a filter's corner, and errs by 2e-4 where the other is."""
    frequencies = np.array([20.0, HIGH_PASS_CORNER, 100, 300, SHELF_CORNER])
    ours, expected = (np.abs(k_weighting(frequencies, each)) for each in (rate, 48_000))
    np.testing.assert_allclose(ours, expected, rtol=5e-4)


def test_full_scale_tone_in_one_channel_reads_minus_3_01():
    for rate, tolerance in TOLERANCES.items():
        waves = np.zeros((1, 2 * rate, 2))
        waves[0, :, 0] = tone(rate)
        assert float(loudness(waves, rate)[0]) == pytest.approx(-3.01, abs=tolerance)


def test_channels_add_up():
    """A second channel adds 3.01 LU, a surround one has the weight 1.41; half is −6.02 LU."""
    waves = np.zeros((5, 96_000, 5))
    waves[0, :, 0] = waves[1, :, 0] = waves[1, :, 1] = tone(48_000)
    waves[2, :, 3] = waves[4, :, 4] = tone(48_000)
    waves[3, :, 2] = tone(48_000, amplitude=0.5)
    surround = 10 * np.log10(1.41)
    expected = np.array([0, 10 * np.log10(2), surround, 20 * np.log10(0.5), surround])
    measured = np.asarray(loudness(waves, 48_000))
    np.testing.assert_allclose(measured - measured[0], expected, atol=1e-4)


def reference(x, rate=48_000):
    """The standard in float64: its filters as recursions, its blocks and gates one by one."""
    filtered = scipy.signal.lfilter(*HIGH_PASS, scipy.signal.lfilter(*SHELF, x, axis=0), axis=0)
    starts = range(0, len(x) - 4 * rate // 10 + 1, rate // 10)
    powers = np.array([(filtered[i : i + 4 * rate // 10] ** 2).mean(0).sum() for i in starts])
    level = lambda power: -0.691 + 10 * np.log10(power)
    passed = powers[level(powers) > -70]
    return level(passed[level(passed) > level(passed.mean()) - 10].mean())


def test_gates():
    """Parts of 1 s: loud, 15 dB below, and silence, so that each gate changes the result.

    The silence's blocks would lower the second gate below the quiet part.
    """
    noise = 0.1 * np.random.default_rng(0).normal(size=(48_000, 2))
    waves = np.concatenate([noise, 10 ** (-15 / 20) * noise, *[1e-5 * noise] * 10])
    ours = float(loudness(waves[None], 48_000)[0])
    assert ours == pytest.approx(reference(waves), abs=1e-3)
    # The quiet part alone is 15 dB below; few blocks hold parts of both.
    assert ours == pytest.approx(reference(noise), abs=1)


def test_what_the_filters_still_say_after_the_end_is_not_heard_at_the_start():
    """One block that ends in 5 ms of a constant, after which the high-pass filter swings back."""
    wave = np.zeros((19_200, 1))
    wave[-240:] = 0.5
    assert float(loudness(wave[None], 48_000)[0]) == pytest.approx(reference(wave), abs=1e-3)


def test_silence_is_minus_infinity():
    sound = tone(48_000)[:20_000]
    waves = np.stack([np.zeros(20_000), sound, np.where(np.arange(20_000) == 9, np.nan, sound)])
    silent, loud, broken = loudness(waves[..., None], 48_000)
    assert silent == -np.inf and np.isfinite(loud) and np.isnan(broken)


def test_faults():
    with pytest.raises(ValueError, match=r"19199 samples .*needs 19200 samples"):
        loudness(np.zeros((1, 19_199, 1)), 48_000)
    with pytest.raises(ValueError, match="at 2400 Hz .*resample to 3364 Hz or more"):
        loudness(np.zeros((1, 9600, 1)), 2400)
    with pytest.raises(ValueError, match="6 channels"):
        loudness(np.zeros((1, 48_000, 6)), 48_000)
