"""The evaluator of spoken words, with samples that are recordings of known words."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import spoken_words as module
from experiments.evaluation import videos
from experiments.evaluation.context import Context
from experiments.evaluation.figures import QUALITY
from experiments.evaluation.spoken_words import SpokenWords, accuracy, chance, recognize_words
from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Waveforms
from genjax.data import Dataset, InMemory
from genjax.data.sets.spoken_digits import DIGITS, Utterance, speak
from genjax.data.sounds import resample, to_int16
from tests.data.sets.test_spoken_digits import needs_espeak

DATA = Data("digits", "train", "test", None, (8000, 1), feature="audio")
WORDS = ("zero", "three", "five", "seven")
CAPTIONS = WORDS * 2


class StandIn:
    """A model whose samples are given, and whose reconstructions are the sounds themselves."""

    how = {"sampler": "none"}

    def __init__(self, samples):
        self.samples, self.functions = samples, {"reconstruct": lambda sounds: sounds}

    def sample(self, labels, prompts):
        assert prompts is not None and len(labels) == len(prompts)
        return self.samples


def recordings(voices):
    said = []
    for voice in voices:
        for word in WORDS:
            samples, rate = speak(Utterance(word, voice, 50, 160))
            sound = to_int16(resample(samples / 2**15, rate, 8000))[:8000]
            said.append(np.pad(sound, ((0, 8000 - len(sound)), (0, 0))))
    return np.stack(said)


def test_chance_is_the_mean_over_all_orders_of_the_words():
    heard, asked = ["a", "b", "a", ""], ["a", "a", "b", "c"]
    orders = list(itertools.permutations(heard))
    expected = np.mean([accuracy(order, asked) for order in orders])
    assert chance(heard, asked) == pytest.approx(expected)
    assert accuracy(heard, asked) == 0.25


@needs_espeak
def test_real_words_are_heard_and_words_that_nobody_asked_for_are_wrong(monkeypatch):
    """Samples in other voices than the recordings; then those of the next word."""
    pytest.importorskip("pocketsphinx")
    real, others = recordings(["en-us+m1", "en-us+f1"]), recordings(["en-us+m2", "en-us+m7"])
    captions = [(word,) for word in CAPTIONS]
    dataset = Dataset("digits", "test", InMemory({"audio": real}), captions=captions)
    monkeypatch.setattr(Data, "load", lambda data, split: dataset)
    monkeypatch.setattr(Data, "held_out", lambda data: dataset)
    videos.real_videos.cache_clear()
    order = np.random.default_rng(0).permutation(len(real))  # as of `RealVideos`
    condition = SimpleNamespace(prompts=WORDS, num_classes=0)
    context = Context(DATA, Waveforms((8000, 1), "audio", 8000), condition, 100)
    report = SpokenWords(context, WORDS)(StandIn(others[order]))
    assert report["word_accuracy"] >= 0.75 and report["word_accuracy_real"] >= 0.75
    assert report["word_accuracy_reconstructed"] == report["word_accuracy_real"]
    assert 0.1 < report["word_accuracy_chance"] < 0.35
    assert report["num_samples"] == 8 and QUALITY["word_accuracy"] == "higher"
    wrong = SpokenWords(context, WORDS)(StandIn(np.roll(others, 1, axis=0)[order]))
    assert wrong["word_accuracy"] <= 0.25
    videos.real_videos.cache_clear()
    assert recognize_words(np.zeros((1, 8000, 1), np.int16), 8000, WORDS)[0] in ("", *WORDS)


def test_what_cannot_be_heard_is_said_before_training(monkeypatch):
    condition = SimpleNamespace(prompts=WORDS, num_classes=0)
    with pytest.raises(ValueError, match="has SpokenWords, which measures sound"):
        SpokenWords(Context(Data("d", "a", "b", None, (8, 8, 1)), None, condition, 10), WORDS)
    classes = SimpleNamespace(num_classes=10)
    with pytest.raises(ValueError, match="needs a network of prompts: .*Prompts, or leave"):
        SpokenWords(Context(DATA, None, classes, 10), WORDS)
    module._decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match="pip install pocketsphinx"):
        SpokenWords(Context(DATA, None, condition, 10), DIGITS)
    module._decoder.cache_clear()


def test_a_word_without_a_pronunciation_is_refused():
    pytest.importorskip("pocketsphinx")
    condition = SimpleNamespace(prompts=WORDS, num_classes=0)
    with pytest.raises(ValueError, match="no English words qwzx"):
        SpokenWords(Context(DATA, None, condition, 10), ("seven", "qwzx"))
