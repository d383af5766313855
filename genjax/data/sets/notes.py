"""Notes of ten instruments, played by the synthesizer FluidSynth with a free sound font."""

import hashlib
import itertools
import math
import os
import re
import struct
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from genjax.data.dataset import Dataset, InMemory, held_out, num_threads, take
from genjax.data.made import find_program, made_once
from genjax.data.sounds import fit_int16, to_int16

SOUND_FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")  # of Debian's timgm6mb-soundfont
INSTRUMENTS = {  # programs of General MIDI, from 0
    "piano": 0,
    "vibraphone": 11,
    "guitar": 24,
    "violin": 40,
    "choir": 52,
    "trumpet": 56,
    "saxophone": 65,
    "oboe": 68,
    "clarinet": 71,
    "flute": 73,
}
PITCHES = range(48, 84)  # of MIDI, where 69 is the A of 440 Hz: C3 to B5
VELOCITIES = (50, 80, 110)  # how hard a key is struck, 1 to 127
HELD = 0.75  # share of a clip for which the key is held
RATE = 44_100  # Hz, of the synthesizer
REST = 2.0  # seconds between notes, in which a note dies away
NAMES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")


class Note(NamedTuple):
    """A note and who plays it.

    Attributes:
        instrument: of `INSTRUMENTS`.
        pitch: of MIDI; it sounds at 440·2^((pitch − 69)/12) Hz.
        velocity: how hard the key is struck, 1 to 127.
    """

    instrument: str
    pitch: int
    velocity: int

    @property
    def name(self) -> str:
        """The name of the pitch: "C sharp 4", where C 4 is 60 of MIDI."""
        return f"{NAMES[self.pitch % len(NAMES)]} {self.pitch // len(NAMES) - 1}"


NOTES = [Note(*each) for each in itertools.product(INSTRUMENTS, PITCHES, VELOCITIES)]


def load_notes(
    split: str,
    *,
    sample_rate: int = 16_000,
    seconds: float = 1.0,
    sound_font: str | os.PathLike = SOUND_FONT,
) -> Dataset:
    """Return `audio` and `label`: 36 pitches of ten instruments, each played in three strengths.

    `audio` is int16 `[samples 1]`. The key is struck at its start and held for three quarters of
    it. `label` is the pitch, 0 for the lowest. The captions of an example are ("C sharp 4 on the
    violin", "violin, C sharp 4").

    Three of the 30 notes of each pitch are in the split `test`, and the others are in `train`. The
    SHA-256 of a note decides. All 1,080 are made at first use, within half a minute. They are
    kept in `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Args:
        sample_rate: in Hz; the synthesizer's own is 44,100.
        seconds: the length of each example.
        sound_font: a file of General MIDI sounds, `.sf2`. The default is that of Debian's
            `timgm6mb-soundfont`.

    Raises:
        FileNotFoundError: FluidSynth is not installed, or there is no such sound font.
        ValueError: the split is unknown, the file is no sound font, or FluidSynth cannot play it.
    """
    labels = np.array([each.pitch - PITCHES[0] for each in NOTES], np.int32)
    tested = held_out(list(map(repr, NOTES)), labels.tolist(), one_in=10)
    members = {"train": lambda: np.flatnonzero(~tested), "test": lambda: np.flatnonzero(tested)}
    kept = np.concatenate(take(split, members))
    audio = _played(sample_rate, seconds, Path(sound_font))[kept]
    captions = [
        (f"{note.name} on the {note.instrument}", f"{note.instrument}, {note.name}")
        for note in (NOTES[index] for index in kept)
    ]
    return Dataset(
        "notes",
        split,
        InMemory({"audio": audio, "label": labels[kept]}),
        num_classes=len(PITCHES),
        class_names=tuple(Note("", pitch, 0).name for pitch in PITCHES),
        captions=captions,
    )


def parse_pitch(caption: str) -> int:
    """Return the pitch of MIDI that a caption of this data set names: inverts `Note.name`.

    Raises:
        ValueError: the caption names no pitch.
    """
    names = "|".join(sorted(NAMES, key=len, reverse=True))
    found = re.search(rf"\b({names}) (\d)\b", caption)
    if found is None:
        raise ValueError(
            f"the caption {caption!r} names no pitch: expected for example 'C sharp 4 on the "
            "violin'"
        )
    return NAMES.index(found[1]) + len(NAMES) * (int(found[2]) + 1)


def play(
    notes: Sequence[Note], seconds: float, sound_font: str | os.PathLike = SOUND_FONT
) -> Int16[np.ndarray, "notes samples 1"]:
    """Return what FluidSynth plays, at 44,100 Hz, without reverberation and chorus.

    The same version with the same sound font always plays the same bytes.

    Args:
        notes: of one instrument.
        seconds: the length of each sound.

    Raises:
        FileNotFoundError: FluidSynth is not installed, or there is no such sound font.
        ValueError: the notes are of several instruments, the file is no sound font, or FluidSynth
            cannot play it.
    """
    program, sound_font = _program(), Path(sound_font)
    if not sound_font.is_file():
        raise FileNotFoundError(
            f"dataset 'notes' takes its sounds from {sound_font}, and there is no such file: "
            "apt-get install timgm6mb-soundfont, or name another in "
            "--config.data.options.sound_font"
        )
    with open(sound_font, "rb") as file:  # without one FluidSynth would take its own
        if file.read(12)[8:] != b"sfbk":
            raise ValueError(f"{sound_font} is no sound font: dataset 'notes' takes a file .sf2")
    [instrument] = {note.instrument for note in notes}
    period = math.ceil(seconds + REST)  # seconds from one note to the next
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        score.write_bytes(_midi(INSTRUMENTS[instrument], notes, period, seconds * HELD))
        options = "-q -n -i -g 2 -R 0 -C 0 -T wav -O s16 -r".split()
        command = [program, *options, str(RATE), "-F", sound, sound_font, score]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not sound.exists():
            raise ValueError(f"FluidSynth cannot play {sound_font}: {result.stderr.strip()}")
        with wave.open(str(sound)) as file:
            stereo = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    mono = to_int16(stereo.mean(1, keepdims=True) / 2**15)
    mono = np.pad(mono, ((0, max(0, len(notes) * period * RATE - len(mono))), (0, 0)))
    return mono[: len(notes) * period * RATE].reshape(len(notes), -1, 1)[:, : round(seconds * RATE)]


def _program() -> str:
    return find_program("fluidsynth", "notes", "fluidsynth timgm6mb-soundfont", "fluid-synth")


def _played(
    sample_rate: int, seconds: float, sound_font: Path
) -> Int16[np.ndarray, "notes samples 1"]:
    """Return all notes, from the cache if they were played before with this sound font."""
    version = subprocess.run([_program(), "--version"], capture_output=True).stdout
    font = hashlib.sha256(sound_font.read_bytes()).hexdigest() if sound_font.is_file() else ""

    length = round(seconds * sample_rate)

    def of_instrument(notes: list[Note]) -> np.ndarray:
        sounds = play(notes, seconds, sound_font) / 2**15
        return np.stack([fit_int16(sound, RATE, sample_rate, length) for sound in sounds])

    def make() -> dict[str, np.ndarray]:
        parts = [list(each) for _, each in itertools.groupby(NOTES, lambda note: note.instrument)]
        with ThreadPoolExecutor(num_threads()) as pool:
            return {"audio": np.concatenate(list(pool.map(of_instrument, parts)))}

    description = repr((version, font, NOTES, sample_rate, length, seconds))
    return made_once("notes", description, make)["audio"]


def _midi(program: int, notes: Sequence[Note], period: int, held: float) -> bytes:
    """Return a file of Standard MIDI (RP-001) with one note every `period` seconds.

    A quarter note lasts a second and has 1,000 ticks.
    """
    events = [(0, bytes([0xFF, 0x51, 3]) + (1_000_000).to_bytes(3)), (0, bytes([0xC0, program]))]
    for index, note in enumerate(notes):
        start = 1000 * period * index
        events.append((start, bytes([0x90, note.pitch, note.velocity])))
        events.append((start + round(1000 * held), bytes([0x80, note.pitch, 0])))
    events.append((1000 * period * len(notes), bytes([0xFF, 0x2F, 0])))
    track, now = b"", 0
    for time, event in events:
        track, now = track + _variable_length(time - now) + event, time
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 1000)
    return header + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(number: int) -> bytes:
    """Return a number in groups of 7 bits, all but the last with bit 7 set."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))
