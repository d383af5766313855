"""Spoken digits with their transcripts, made by the speech synthesizer espeak-ng.

`speak` says any other text in the same voices.
"""

import io
import itertools
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from genjax.data.dataset import Dataset, InMemory, held_out, num_threads, take
from genjax.data.made import find_program, made_once
from genjax.data.sounds import fit_int16

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# American English in six male and four female voices. They are chosen among those without breath,
# which espeak-ng draws anew at every call.
NAMES = ("m1", "m2", "m3", "m5", "m6", "m7", "f1", "f4", "anika", "aunty")
VOICES = tuple(f"en-us+{name}" for name in NAMES)
PITCHES = (35, 50, 65)  # espeak-ng's own scale, 0 to 99
SPEEDS = (130, 160, 190)  # words a minute


class Utterance(NamedTuple):
    """A text and how it is said.

    Attributes:
        voice: a name of espeak-ng's, "en-us+f1".
        pitch: of `PITCHES`.
        speed: of `SPEEDS`.
    """

    text: str
    voice: str
    pitch: int
    speed: int


UTTERANCES = [Utterance(*each) for each in itertools.product(DIGITS, VOICES, PITCHES, SPEEDS)]


def load_spoken_digits(split: str, *, sample_rate: int = 8000, seconds: float = 1.0) -> Dataset:
    """Return `audio` and `label`: each digit in ten voices, at three pitches and three speeds.

    `audio` is int16 `[samples 1]`, and begins as the synthesizer does, a moment before the word. It
    is padded with silence, or cut: words end after 0.2 to 0.9 seconds. An example's captions are
    its transcript as a word and as a number, ("seven", "7").

    One utterance in ten of each digit is in the split `test` and the others are in `train`, chosen
    by the SHA-256 of the utterance. All 900 are made at first use, within seconds. They are kept
    in `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Args:
        sample_rate: in Hz; the synthesizer's own is 22,050.
        seconds: the length of each example.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
        ValueError: the split is unknown.
    """
    length = round(seconds * sample_rate)
    labels = np.array([DIGITS.index(each.text) for each in UTTERANCES], np.int32)
    tested = held_out(list(map(repr, UTTERANCES)), labels.tolist(), one_in=10)
    members = {"train": lambda: np.flatnonzero(~tested), "test": lambda: np.flatnonzero(tested)}
    kept = np.concatenate(take(split, members))
    audio = _spoken(sample_rate, length)[kept]
    captions = [(DIGITS[label], str(label)) for label in labels[kept].tolist()]
    return Dataset(
        "spoken_digits",
        split,
        InMemory({"audio": audio, "label": labels[kept]}),
        num_classes=len(DIGITS),
        class_names=DIGITS,
        captions=captions,
    )


def speak(utterance: Utterance) -> tuple[Int16[np.ndarray, "samples 1"], int]:
    """Return what espeak-ng says, and its sample rate.

    In a voice of `VOICES`, the same version of espeak-ng always says the same bytes.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
        ValueError: espeak-ng has no such voice.
    """
    text, voice, pitch, speed = utterance
    options = "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout"
    said = subprocess.run([_program(), *options, text], capture_output=True)
    if said.returncode or not said.stdout:
        raise ValueError(f"espeak-ng cannot say {utterance}: {said.stderr.decode().strip()}")
    with wave.open(io.BytesIO(said.stdout)) as file:
        rate = file.getframerate()
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")[:, None], rate


def _program() -> str:
    return find_program("espeak-ng", "spoken_digits", "espeak-ng", "espeak-ng")


def _spoken(sample_rate: int, length: int) -> Int16[np.ndarray, "utterances samples 1"]:
    """Return all utterances, from the cache if they were made before by this espeak-ng."""
    version = subprocess.run([_program(), "--version"], capture_output=True).stdout

    def make() -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(num_threads()) as pool:
            parts = pool.map(lambda each: _padded(each, sample_rate, length), UTTERANCES)
            return {"audio": np.stack(list(parts))}

    description = repr((version, UTTERANCES, sample_rate, length))
    return made_once("spoken-digits", description, make)["audio"]


def _padded(utterance: Utterance, sample_rate: int, length: int) -> Int16[np.ndarray, "samples 1"]:
    samples, rate = speak(utterance)
    return fit_int16(samples / 2**15, rate, sample_rate, length)
