"""Notes: their frequencies are those of equal temperament, and harder strokes are louder."""

import os
import shutil

import numpy as np
import pytest

from genjax.data import Batches, load_dataset
from genjax.data.sets import notes as module
from genjax.data.sets.notes import INSTRUMENTS, NOTES, PITCHES, RATE, Note, parse_pitch, play
from genjax.data.sounds import resample, to_int16

needs_fluidsynth = pytest.mark.skipif(
    (shutil.which("fluidsynth") is None or not module.SOUND_FONT.exists())
    and "CI" not in os.environ,
    reason="FluidSynth is not installed; apt-get install fluidsynth timgm6mb-soundfont",
)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Return every fifth note of two instruments; the cache is a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notes = [each for each in NOTES if each.instrument in ("flute", "piano")][::5]
    monkeypatch.setattr(module, "NOTES", notes)
    return notes


@needs_fluidsynth
def test_shapes_splits_and_captions(few, tmp_path):
    train = load_dataset("notes", "train", sample_rate=8000, seconds=0.5)
    assert train.image_shape == (4000, 1) and train.num_classes == 36
    assert train.class_names[0] == "C 3" and train.class_names[22] == "A sharp 4"
    both = load_dataset("notes", "train+test", sample_rate=8000, seconds=0.5)
    sounds = both.source[:]["audio"]
    assert load_dataset("notes", seconds=0.768).image_shape == (12_288, 1)
    assert len(sounds) == len(few) == 44 and len({each.tobytes() for each in sounds}) == 44
    assert {path.suffix for path in (tmp_path / "genjax").iterdir()} == {".npz"}
    first = few[0]
    [index] = [
        i for i, each in enumerate(both.captions) if each == ("C 3 on the piano", "piano, C 3")
    ]
    assert first == Note("piano", 48, 50) and both.source[index]["label"] == 0
    alone = to_int16(resample(play([first], 0.5)[0] / 2**15, RATE, 8000))
    np.testing.assert_array_equal(sounds[index], alone)  # no note sounds into the next
    assert set(Batches(train, 4, seed=0, image_shape=(4000, 1))[0]) == {"audio", "label", "index"}
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_dataset("notes", "valid")


def fundamental(sound):
    """Return the frequency in Hz, by the first high peak of the autocorrelation."""
    samples = sound[RATE // 5 : RATE // 2, 0].astype(float)
    spectrum = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(samples)] / np.arange(len(samples), 0, -1)
    lags = np.arange(RATE // 1100, RATE // 110)
    before, at, after = (correlation[lags + shift] for shift in (-1, 0, 1))
    peak = ((at > before) & (at > after) & (at > 0.85 * correlation[lags].max())).argmax()
    a, b, c = before[peak], at[peak], after[peak]
    return RATE / (lags[peak] + (a - c) / (a - 2 * b + c) / 2)


@needs_fluidsynth
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_pitches_and_strengths(instrument):
    """Frequencies are 440·2^((pitch − 69)/12) Hz within a fifth of a semitone."""
    pitches = range(48, 84, 5)
    sounds = play([Note(instrument, pitch, 110) for pitch in pitches], 0.6)
    found = [69 + 12 * np.log2(fundamental(sound) / 440) for sound in sounds]
    np.testing.assert_allclose(found, pitches, atol=0.2)
    soft, loud = play([Note(instrument, 60, velocity) for velocity in (50, 110)], 0.6) / 2**15
    assert 1.5 * np.abs(soft).max() < np.abs(loud).max() < 1
    np.testing.assert_array_equal(sounds[0], play([Note(instrument, 48, 110)], 0.6)[0])


def test_names_of_pitches():
    for pitch in PITCHES:
        for instrument in INSTRUMENTS:
            name = Note(instrument, pitch, 0).name
            assert parse_pitch(f"{name} on the {instrument}") == pitch
            assert parse_pitch(f"{instrument}, {name}") == pitch
    with pytest.raises(ValueError, match="'a flute' names no pitch"):
        parse_pitch("a flute")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    if shutil.which("fluidsynth"):
        with pytest.raises(FileNotFoundError, match="apt-get install timgm6mb-soundfont"):
            play(NOTES[:1], 1.0, tmp_path / "none.sf2")
        (tmp_path / "wrong.sf2").write_bytes(b"no sound font")
        with pytest.raises(ValueError, match="wrong.sf2 is no sound font"):
            play(NOTES[:1], 1.0, tmp_path / "wrong.sf2")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(FileNotFoundError, match="apt-get install fluidsynth"):
        load_dataset("notes")
