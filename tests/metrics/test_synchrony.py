import itertools

import numpy as np
import pytest

from genjax.metrics import (
    chance_synchrony,
    detect_onsets,
    match_events,
    onset_pitch,
    synchrony,
)
from genjax.metrics.synchrony import onset_strength

RATE = 8000


def tones(onsets, pitches, seconds=1.0, amplitude=0.2, decay=0.05, rate=RATE, length=None):
    """Sines that begin at onsets and decay, `[samples 1]`; `length` ends them, in seconds."""
    time = np.arange(round(seconds * rate)) / rate
    waves = np.zeros_like(time)
    for onset, pitch in zip(onsets, pitches, strict=True):
        since = time - onset
        sounds = (since >= 0) & (since < (length or np.inf))
        sine = np.sin(2 * np.pi * pitch * since) * np.exp(-np.where(sounds, since, 0) / decay)
        waves += np.where(sounds, amplitude * sine, 0)
    return waves[:, None]


def test_matching_is_the_best_of_all():
    """All one-to-one matchings of a few events, enumerated: the most pairs, then the least lag."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        seen, heard = (generator.uniform(0, 1, generator.integers(0, 5)) for _ in range(2))
        found = match_events(seen, heard, 0.2)
        best = (0, 0.0)
        for count in range(1, min(len(seen), len(heard)) + 1):
            for rows in itertools.combinations(range(len(seen)), count):
                for columns in itertools.permutations(range(len(heard)), count):
                    lags = np.abs(heard[list(columns)] - seen[list(rows)])
                    if lags.max() <= 0.2:
                        best = min(best, (-count, lags.sum()))
        lags = np.abs(heard[found[:, 1]] - seen[found[:, 0]])
        assert -len(found) == best[0] and lags.sum() == pytest.approx(best[1])
        assert len(set(found[:, 0])) == len(set(found[:, 1])) == len(found)
    # Two pairs with much lag are better than one pair without.
    found = match_events(np.array([1.0, 1.15]), np.array([1.15, 1.34]), 0.2)
    np.testing.assert_array_equal(found, [[0, 0], [1, 1]])


def test_rates_and_lags():
    """Three of four events are heard, 10 and 20 and 30 ms late; one of four sounds is alone."""
    seen = [np.array([0.1, 0.5]), np.array([0.2, 0.9]), np.array([])]
    heard = [np.array([0.52, 0.11]), np.array([0.23]), np.array([0.7])]
    measured = synchrony(seen, heard, 0.05)
    deviation = 0.01 * np.sqrt(2 / 3)
    np.testing.assert_allclose(measured, (0.75, 0.25, 0.02, deviation), rtol=1e-9)
    # With less tolerance the latest one is no match.
    assert synchrony(seen, heard, 0.025)[:2] == (0.5, 0.5)
    silent = synchrony(seen, [np.array([])] * 3, 0.05)
    assert silent.hit_rate == 0 and np.isnan(silent[1:]).all()
    assert np.isnan(synchrony([], [], 0.05)).all()


def test_chance_of_independent_events():
    """Two times in the unit interval are within d with probability 1 − (1 − d)²."""
    events = [np.random.default_rng(i).uniform(0, 1, 1) for i in range(2000)]
    assert synchrony(events, events, 0.1).hit_rate == 1
    measured = chance_synchrony(events, events, 0.1)
    # The deviation of a share of 2,000 is 0.9 %.
    assert measured.hit_rate == pytest.approx(1 - 0.9**2, abs=0.03)
    assert measured.false_rate == pytest.approx(0.9**2, abs=0.03)


def test_strength_of_a_steady_tone_is_its_amplitude():
    """The peak is at the tone's beginning; its end, though abrupt, has no strength of a rise."""
    waveform = tones([0.3], [1000], amplitude=0.2, decay=np.inf, length=0.4)
    waveform = np.concatenate([0 * waveform, 2 * waveform], axis=1)  # channels become their mean
    strength, times = onset_strength(waveform, RATE)
    # A tone that begins within a frame splashes over all bins, which adds 6 %.
    assert strength.max() == pytest.approx(0.2, rel=0.08)
    assert times[strength.argmax()] == pytest.approx(0.3, abs=0.0041)  # a step
    assert strength[times > 0.35].max() < 0.001
    np.testing.assert_allclose(detect_onsets(waveform, RATE), 0.3, atol=0.0041)


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_onsets_of_decaying_tones(rate):
    """Tones that overlap, one of which repeats; the first begins with the waveform."""
    onsets = [0, 0.2, 0.24, 0.5, 0.6]
    waveform = tones(onsets, [262, 440, 523, 440, 440], rate=rate)
    found = detect_onsets(np.repeat(waveform, 2, axis=1), rate)
    # The peak of a tone that decays by 1/e in 50 ms is 4 ms early.
    np.testing.assert_allclose(found, np.subtract(onsets, 0.004), atol=0.0041)
    assert found[0] < 0.001


@pytest.mark.parametrize("seed", [83, 118])
def test_dense_onsets(seed):
    """Random clicks: onsets are 16 ms apart, and the strength falls by the threshold between."""
    random, clicks = np.random.default_rng(seed), np.zeros((RATE, 1))
    clicks[random.integers(0, RATE, 60), 0] = random.normal(size=60)
    strength, times = onset_strength(clicks, RATE)
    places = np.searchsorted(times, detect_onsets(clicks, RATE) - 1e-9)
    assert len(places) > 20 and np.diff(places).min() >= 4  # of 4 ms each
    for before, after in itertools.pairwise(places):
        dip = strength[before:after].min()
        assert dip <= min(strength[before], strength[after]) - 0.03


def test_what_is_no_onset():
    noise = 0.003 * np.random.default_rng(0).normal(size=(RATE, 1))  # −50 dB
    assert len(detect_onsets(np.zeros((RATE, 1)), RATE)) == 0
    assert len(detect_onsets(noise, RATE)) == 0
    found = detect_onsets(noise + tones([0.5], [800]), RATE)
    np.testing.assert_allclose(found, 0.496, atol=0.004)
    # A tone of −36 dB is below the threshold of −30 dB; a threshold of −40 dB finds it.
    quiet = tones([0.5], [800], amplitude=10 ** (-36 / 20), decay=np.inf)
    assert len(detect_onsets(quiet, RATE)) == 0
    np.testing.assert_allclose(detect_onsets(quiet, RATE, threshold=0.01), 0.5, atol=0.004)


def test_pitches_of_tones():
    """Within 2 % of a semitone at 40 ms, and within 0.2 % at 0.1 s; other pitches have decayed."""
    pitches = 440 * 2 ** (np.array([-9, -4, 0, 5, 11, 26]) / 12)  # C4 to B6
    errors = {0.04: [], 0.1: []}
    for pitch, phase in itertools.product(pitches, (0.0, 0.3)):
        waveform = tones([0.3 - phase / pitch], [pitch], decay=0.05)
        for seconds, found in errors.items():
            measured = onset_pitch(waveform, 0.3, RATE, seconds=seconds)
            found.append(1200 * np.log2(measured / pitch))
    assert np.abs(errors[0.04]).max() < 2 and np.abs(errors[0.1]).max() < 0.2
    ringing = tones([0.2, 0.3], [262, 330])
    assert onset_pitch(ringing, 0.3, RATE) == pytest.approx(330, rel=0.02)
    assert onset_pitch(ringing, 0.2, RATE) == pytest.approx(262, rel=0.02)
    # Near the end of the waveform there is less sound.
    assert onset_pitch(tones([0.98], [1000]), 0.98, RATE) == pytest.approx(1000, rel=0.02)


def test_pitch_is_found_in_its_range():
    both = tones([0.3], [300]) + tones([0.3], [1500], amplitude=0.05)
    assert onset_pitch(both, 0.3, RATE) == pytest.approx(300, rel=0.01)
    assert onset_pitch(both, 0.3, RATE, low=1000) == pytest.approx(1500, rel=0.01)
    # A louder pitch outside the range is not taken. Nor is its slope, but for 1/16 of a bin, which
    # has 25 Hz. The default range is 100 to 3,000 Hz.
    assert onset_pitch(both, 0.3, RATE, low=310, high=320) >= 310 - 25 / 16
    beside = tones([0.3, 0.3], [50, 3500], amplitude=1)
    assert onset_pitch(both + beside, 0.3, RATE) == pytest.approx(300, rel=0.01)
    # A range may reach to either end of the spectrum.
    assert onset_pitch(both, 0.3, RATE, low=0, high=RATE) == pytest.approx(300, rel=0.01)
    highest = np.cos(np.pi * np.arange(RATE))[:, None]  # at half the sample rate
    assert onset_pitch(highest, 0.3, RATE, high=RATE) == pytest.approx(RATE / 2, rel=0.01)


def test_silence_has_no_pitch():
    assert np.isnan(onset_pitch(np.zeros((RATE, 1)), 0.3, RATE))
    assert np.isnan(onset_pitch(tones([0.3], [300]), 2.0, RATE))  # after the end
    # Below all logarithms that are told apart, a pitch is known to a bin.
    assert onset_pitch(1e-15 * tones([0.3], [300]), 0.3, RATE) == pytest.approx(300, abs=25 / 8)


def test_faults():
    with pytest.raises(ValueError, match="events of 1 clips and audio events of 2"):
        synchrony([np.zeros(1)], [np.zeros(1)] * 2, 0.1)
    with pytest.raises(ValueError, match="sound of another clip, and there are 1 clips"):
        chance_synchrony([np.zeros(1)], [np.zeros(1)], 0.1)


def test_integers_are_refused(unchecked_annotations):
    """The threshold is a share of full scale, which is 1 for floats and 32,767 for int16."""
    with pytest.raises(ValueError, match=r"integers \(int16\); expected floats in \[−1, 1\]"):
        detect_onsets(np.zeros((800, 1), np.int16), 8000)
