"""Measures of whether samples say the words of their prompts, by a speech recognizer."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.evaluation.context import Context, Model
from experiments.evaluation.sounds import Sounds, check_prompted_sounds, prompted_sounds
from genjax.data.sounds import resample, to_int16

RATE = 16_000  # Hz, of the recognizer's acoustic model
SILENCE = RATE // 4  # samples before and after a word
NOISE = 30 / 2**15  # deviation of noise in every sound; the recognizer expects some, not zeros


@functools.cache
def _decoder(words: tuple[str, ...]) -> Any:
    """Return pocketsphinx with a grammar of these words alone.

    Raises:
        ImportError: pocketsphinx is not installed.
        ValueError: a word is not in its dictionary of American English.
    """
    try:
        import pocketsphinx
    except ImportError as error:
        raise ImportError(
            "SpokenWords hears words by pocketsphinx, which is not installed: pip install "
            "pocketsphinx==5.1.1"
        ) from error
    decoder = pocketsphinx.Decoder(samprate=RATE, lm=None, loglevel="FATAL")
    unknown = [word for word in words if decoder.lookup_word(word) is None]
    if unknown:
        raise ValueError(
            f"pocketsphinx has no English words {', '.join(unknown)}: leave SpokenWords out of "
            "config.evaluation.measures"
        )
    decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar w; public <w> = {' | '.join(words)};")
    decoder.activate_search("words")
    return decoder


def recognize_words(sounds: Sounds, sample_rate: int, words: Sequence[str]) -> list[str]:
    """Return the one of `words` that pocketsphinx hears in each sound, "" if it hears none.

    A sound is the mean of its channels, resampled to 16 kHz, between two silences of 0.25 s. The
    same noise at −61 dB of full scale is added to every sound.

    Args:
        sample_rate: of the sounds, in Hz.

    Raises:
        ImportError: pocketsphinx is not installed.
        ValueError: a word is not in its dictionary of American English.
    """
    decoder, heard = _decoder(tuple(words)), []
    for sound in sounds:
        mean = sound.mean(axis=1, keepdims=True) / 2**15
        samples = np.pad(resample(mean, sample_rate, RATE), ((SILENCE, SILENCE), (0, 0)))
        noise = NOISE * np.random.default_rng(0).normal(size=samples.shape)
        decoder.start_utt()
        decoder.process_raw(to_int16(samples + noise).tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        heard.append(hypothesis.hypstr if hypothesis else "")
    return heard


@dataclass(frozen=True)
class SpokenWords:
    """Measure how often a speech recognizer hears the word of a sample's prompt.

    The prompts are held-out captions, and pocketsphinx chooses one of `words`. `word_accuracy` is
    the share of samples in which pocketsphinx hears the prompt. `word_accuracy_chance` is the mean
    accuracy of the same answers in all orders. `word_accuracy_real` is the share of held-out
    recordings in which pocketsphinx hears the caption. `word_accuracy_reconstructed` is the same
    share after the space of the network and back. A recognizer made for whole sentences does not
    reach 1 on recordings of single words.

    Attributes:
        words: English words, those of the first captions.
    """

    context: Context
    words: tuple[str, ...]
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2

    def __post_init__(self):
        """Check data, condition and recognizer before any training.

        Raises:
            ValueError: the data are no sounds, the network takes no prompts, or the recognizer does
                not know a word.
            ImportError: pocketsphinx is not installed.
        """
        check_prompted_sounds("SpokenWords", self.context)
        _decoder(tuple(self.words))

    def __call__(self, model: Model) -> dict[str, Any]:
        captions, said = prompted_sounds(self.context, model)
        rate, report = self.context.space.sample_rate, {}
        for suffix, sounds in said.items():
            heard = recognize_words(sounds, rate, self.words)
            report[f"word_accuracy{suffix}"] = accuracy(heard, captions)
            if not suffix:
                report["word_accuracy_chance"] = chance(heard, captions)
        return report | {"num_samples": len(captions), **model.how}


def accuracy(heard: Sequence[str], asked: Sequence[str]) -> float:
    """Return the share of equal words."""
    return float(np.mean(np.array(heard) == np.array(asked)))


def chance(heard: Sequence[str], asked: Sequence[str]) -> float:
    """Return the mean accuracy of the same words in all orders: Σ p(heard)·p(asked) of words."""
    return float(np.mean(np.array(heard)[:, None] == np.array(asked)[None]))
