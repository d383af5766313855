"""Spoken digits: a speech recognizer hears the transcripts, and pitches are those of the voices."""

import os
import shutil
import time

import numpy as np
import pytest

from genjax.data import Batches, load_dataset
from genjax.data.sets import spoken_digits as module
from genjax.data.sets.spoken_digits import DIGITS, UTTERANCES, Utterance, speak
from genjax.data.sounds import resample, to_int16

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None and "CI" not in os.environ,
    reason="espeak-ng is not installed; apt-get install espeak-ng",
)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Return every fourth utterance of two digits; the cache is a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    utterances = [each for each in UTTERANCES if each.text in ("two", "five")][::4]
    monkeypatch.setattr(module, "UTTERANCES", utterances)
    return utterances


@needs_espeak
def test_shapes_splits_and_transcripts(few, tmp_path):
    train = load_dataset("spoken_digits", "train")
    assert train.image_shape == (8000, 1) and train.num_classes == 10
    assert train.class_names == DIGITS
    labels = train.source[:]["label"]
    assert train.captions == [(DIGITS[label], str(label)) for label in labels]
    both = load_dataset("spoken_digits", "train+test").source[:]
    assert len(both["label"]) == len(few) == 45 and sorted(set(both["label"])) == [2, 5]
    assert len({audio.tobytes() for audio in both["audio"]}) == 45
    texts = {audio.tobytes(): DIGITS[label] for audio, label in zip(*both.values(), strict=True)}
    for utterance in few[::9]:
        samples, rate = speak(utterance)
        sound = to_int16(resample(samples / 2**15, rate, 8000))
        expected = np.pad(sound, ((0, 8000), (0, 0)))[:8000]
        assert texts[expected.tobytes()] == utterance.text
    assert [path.suffix for path in (tmp_path / "genjax").iterdir()] == [".npz"]
    batch = Batches(train, 4, seed=0, image_shape=(8000, 1))[0]
    assert set(batch) == {"audio", "label", "index"}
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_dataset("spoken_digits", "valid")


@needs_espeak
def test_the_same_bytes_again(few, tmp_path, monkeypatch):
    """Voices with breath differ from second to second."""
    options = dict(sample_rate=16_000, seconds=0.5)
    first = load_dataset("spoken_digits", "test", **options).source[:]["audio"]
    said = [speak(Utterance("one", voice, 50, 160))[0] for voice in module.VOICES]
    assert len({samples.tobytes() for samples in said}) == 10
    time.sleep(1.1)
    for voice, samples in zip(module.VOICES, said, strict=True):
        np.testing.assert_array_equal(speak(Utterance("one", voice, 50, 160))[0], samples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = load_dataset("spoken_digits", "test", **options).source[:]["audio"]
    assert first.shape[1:] == (8000, 1)
    np.testing.assert_array_equal(first, again)


def fundamental(samples, rate):
    """Return the pitch of the loudest 60 ms in Hz, by the highest peak of the autocorrelation."""
    energy = np.convolve(samples.astype(float) ** 2, np.ones(round(0.06 * rate)), "valid")
    loud = samples[energy.argmax() :][: round(0.06 * rate)].astype(float)
    correlation = np.correlate(loud, loud, "full")[len(loud) - 1 :]
    lags = np.arange(round(rate / 400), round(rate / 60))
    return rate / lags[correlation[lags].argmax()]


@needs_espeak
def test_voices_pitches_and_speeds():
    def said(**fields):
        samples, rate = speak(Utterance("one", "en-us+m1", 50, 160)._replace(**fields))
        return samples[:, 0], rate

    pitches = {
        (voice, pitch): fundamental(*said(voice=voice, pitch=pitch))
        for voice in ("en-us+m1", "en-us+f1")
        for pitch in module.PITCHES
    }
    for voice in ("en-us+m1", "en-us+f1"):
        assert all(np.diff([pitches[voice, pitch] for pitch in module.PITCHES]) > 5)  # Hz
    assert 60 < pitches["en-us+m1", 50] < pitches["en-us+f1", 50] < 300
    slow, fast = (len(said(speed=speed)[0]) for speed in (module.SPEEDS[0], module.SPEEDS[-1]))
    assert slow > fast
    assert max(np.abs(said(voice=voice)[0]).max() for voice in module.VOICES) < 2**15 - 1
    with pytest.raises(ValueError, match="espeak-ng cannot say .*does not exist"):
        said(voice="nowhere")


@needs_espeak
def test_a_recognizer_hears_the_transcripts():
    """pocketsphinx (PyPI) knows 77 % of 200 digits, and 10 % would be chance."""
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=16_000, lm=None, loglevel="FATAL")
    grammar = f"#JSGF V1.0; grammar digits; public <digit> = {' | '.join(DIGITS)};"
    decoder.add_jsgf_string("digits", grammar)
    decoder.activate_search("digits")
    heard, said = [], UTTERANCES[::18]
    for utterance in said:
        samples, rate = speak(utterance)
        sound = to_int16(resample(samples / 2**15, rate, 16_000))[:, 0]
        decoder.start_utt()
        decoder.process_raw(np.pad(sound, 4000).tobytes(), False, True)
        decoder.end_utt()
        heard.append(decoder.hyp().hypstr if decoder.hyp() else "")
    right = np.mean([word == each.text for word, each in zip(heard, said, strict=True)])
    assert len(said) == 50 and right >= 0.7


def test_without_espeak(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        load_dataset("spoken_digits")
