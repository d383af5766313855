"""Moving digits that sound when they bounce: video and audio with exact synchrony.

The clips are those of `moving_digits`. At each bounce at a wall a short tone sounds, whose pitch
tells the digit. `bounces` returns when which digit bounces, and `sound` makes the tones of it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, OnDisk, preload
from genjax.data.sets import moving_digits
from genjax.data.sets.moving_digits import NUM_FRAMES, SIDE, Movement

FRAMES_PER_SECOND = 8
SAMPLE_RATE = 8000  # Hz
FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND
# Major thirds from C4 to C7, in Hz: digit 0 has the lowest pitch.
PITCHES = tuple(440 * 2 ** ((60 + 4 * digit - 69) / 12) for digit in range(10))
TONE_SECONDS, DECAY_SECONDS = 0.25, 0.05
CLICK_SECONDS = 0.0005
TONE, CLICK = 0.18, 0.06  # amplitudes; four tones at once, the most there can be, stay within 1
WALLS = (("top", "bottom"), ("left", "right"))  # of rows and of columns, low and high


@dataclass(frozen=True)
class Bounce:
    """A digit's reflection at a wall.

    Attributes:
        digit: 0 to 9.
        time: in frames, counted from the first frame; the digit turns between two frames.
        wall: "top", "bottom", "left" or "right".
    """

    digit: int
    time: float
    wall: str

    @property
    def frame(self) -> int:
        """The first frame that shows the digit after the bounce."""
        return math.ceil(self.time)

    @property
    def sample(self) -> int:
        """The first sample of the bounce's tone."""
        return round(self.time * FRAME_SAMPLES)


def load_sounding_digits(
    split: str,
    size: int = SIDE,
    num_digits: int | None = None,
    *,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `video` and `audio`: clips of `moving_digits`, and a tone at each of their bounces.

    `audio` is int16, 17,000 samples of one channel at 8,000 Hz, and as long as the 17 frames at 8
    frames a second. Frame i shows the digits at sample 1,000·i, so its interval ends at sample
    1,000·(i + 1). A tone starts at the sample nearest to the bounce. It is a decaying sine of the
    digit's pitch (`PITCHES`) with a click at its start, and lasts 0.25 seconds. Tones add up. A
    bounce after the last frame is not seen, and does not sound.

    Splits and captions are those of `moving_digits`. A clip depends on its split, index, size and
    number of digits only.

    Args:
        size: the side of the frames in pixels.
        num_digits: the digits of each clip. None: one or two, which are equally likely.
        preload_bytes: a split of at most this size is made at once and kept in memory. Clips of a
            larger one are made when they are read.

    Raises:
        ValueError: as of `load_moving_digits`.
    """
    clips = SoundingClips(*moving_digits.scenes(split, size, num_digits))
    shapes = {"video": (NUM_FRAMES, size, size, 1), "audio": (NUM_FRAMES * FRAME_SAMPLES, 1)}
    source = OnDisk(clips, {"video": np.dtype(np.uint8), "audio": np.dtype(np.int16)})
    clip_bytes = math.prod(shapes["video"]) + 2 * math.prod(shapes["audio"])
    if clip_bytes * len(clips) <= preload_bytes:
        source = preload(source, shapes)
    captions = [(moving_digits.caption_of(moving),) for moving in clips.movements]
    return Dataset("sounding_digits", split, source, image_shape=shapes["video"], captions=captions)


class SoundingClips(moving_digits.Clips):
    """Records of clips with sound, each made when it is read."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return super().__getitem__(index) | {"audio": sound(bounces_of(self.movements[index]))}


def bounces(
    split: str, size: int = SIDE, num_digits: int | None = None
) -> list[tuple[Bounce, ...]]:
    """Return the bounces that are seen and heard in each clip of a split, first to last.

    Args:
        size, num_digits: as of `load_sounding_digits`.

    Raises:
        ValueError: as of `load_moving_digits`.
    """
    moving = moving_digits.movements(split, size, num_digits)
    return [bounces_of(each) for each in moving]


def bounces_of(moving: Sequence[Movement]) -> tuple[Bounce, ...]:
    """Return the bounces of moving digits from the first frame to the last, first to last.

    The room is how far a digit's upper left corner can go. A digit on the path start +
    velocity·time meets a wall where the path is a multiple of the room. An even multiple is the top
    or left wall. A digit that does not move along an axis bounces off none of its walls.
    """
    found = []
    for movement in moving:
        room = movement.room
        for walls, start, speed in zip(WALLS, movement.start, movement.velocity, strict=True):
            if not speed:
                continue
            low, high = sorted((start, start + speed * (NUM_FRAMES - 1)))
            for multiple in range(math.ceil(low / room), math.floor(high / room) + 1):
                time = (multiple * room - start) / speed
                found.append(Bounce(movement.digit, time, walls[multiple % 2]))
    return tuple(sorted(found, key=lambda bounce: bounce.time))


def sound(bounces: Sequence[Bounce]) -> np.ndarray:
    """Return the tones of bounces as int16 `[17,000 1]`."""
    samples = np.zeros(NUM_FRAMES * FRAME_SAMPLES)
    for bounce in bounces:
        rest = samples[bounce.sample :]
        rest[: round(TONE_SECONDS * SAMPLE_RATE)] += tone(bounce.digit)[: len(rest)]
    return np.rint(samples * (2**15 - 1)).astype(np.int16)[:, None]


@functools.cache
def tone(digit: int) -> np.ndarray:
    """Return a digit's tone in [−1, 1], `[samples]`: a click and a sine, fading out to silence."""
    time = np.arange(round(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    sine = np.sin(2 * np.pi * PITCHES[digit] * time) * np.exp(-time / DECAY_SECONDS)
    return TONE * sine * (1 - time / TONE_SECONDS) + CLICK * np.exp(-time / CLICK_SECONDS)
