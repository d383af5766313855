"""The evaluator of notes, with sounds that say which pitch is heard in them."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import note_pitches as module
from experiments.evaluation import videos
from experiments.evaluation.context import Context
from experiments.evaluation.figures import QUALITY
from experiments.evaluation.note_pitches import NotePitches
from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Waveforms
from genjax.data import Dataset, InMemory
from genjax.data.sets.notes import Note

DATA = Data("digits", "train", "test", None, (16_000, 1), feature="audio")
ASKED = (48, 60, 61, 72)
PROMPTS = SimpleNamespace(prompts=("C 3 on the flute",), num_classes=0)


def sounds_of(semitones):
    """Return sounds of four samples: pitch · 100, and 1 where two of five frames are sure."""
    return np.array([[[round(100 * pitch)], [1], [0], [0]] for pitch in semitones], np.int16)


def hear(network, variables, sounds, rate):
    """Answer what the sounds say, with a wrong pitch in the frames that are not sure."""
    assert rate == 16_000
    semitones, sure = sounds[:, :1, 0] / 100, np.array([0.9, 0.2, 0.2, 0.9, 0.2]) * sounds[:, 1]
    heard = np.where(sure > 0.5, semitones, 20.0)
    return 440 * 2 ** ((heard - 69) / 12), sure


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(module.crepe, "load", lambda path: (None, None))
    monkeypatch.setattr(module, "_hear", hear)
    captions = [(f"{Note('', pitch, 0).name} on the flute",) for pitch in ASKED]
    dataset = Dataset("digits", "test", InMemory({"audio": sounds_of(ASKED)}), captions=captions)
    monkeypatch.setattr(Data, "load", lambda data, split: dataset)
    monkeypatch.setattr(Data, "held_out", lambda data: dataset)
    videos.real_videos.cache_clear()
    yield
    videos.real_videos.cache_clear()


def measured(semitones, quiet=()):
    """Return the report of samples with these pitches, in the order of `ASKED`."""
    order = np.random.default_rng(0).permutation(len(ASKED))  # as of `RealVideos`
    samples = sounds_of(semitones)
    samples[list(quiet), 1] = 0
    sharpen = lambda sounds: np.where(sounds == 4800, 4900, sounds)
    model = SimpleNamespace(how={}, functions={"reconstruct": sharpen})
    model.sample = lambda labels, prompts: samples[order]
    context = Context(DATA, Waveforms((16_000, 1), "audio", 16_000), PROMPTS, 100)
    return NotePitches(context, "weights")(model)


def test_a_pitch_is_right_within_half_a_semitone():
    report = measured([48.4, 59.6, 61, 72])
    assert report["pitch_accuracy"] == report["pitch_accuracy_real"] == 1
    assert report["pitch_accuracy_reconstructed"] == 0.75
    assert report["num_samples"] == 4 and QUALITY["pitch_accuracy"] == "higher"
    assert report["pitch_accuracy_chance"] == 4 / 16
    assert measured([48.6, 48, 61, 84])["pitch_accuracy"] == 0.25  # an octave is wrong, too
    assert measured(ASKED, quiet=[1])["pitch_accuracy"] == 0.75  # nothing is heard


def test_what_cannot_be_heard_is_said_before_training():
    with pytest.raises(ValueError, match="has NotePitches, which measures sound"):
        NotePitches(Context(Data("d", "a", "b", None, (8, 8, 1)), None, PROMPTS, 10), "weights")
    with pytest.raises(ValueError, match="NotePitches, which needs a network of prompts"):
        NotePitches(Context(DATA, None, SimpleNamespace(num_classes=10), 10), "weights")
