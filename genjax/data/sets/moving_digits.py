"""Moving handwritten digits: Moving MNIST (Srivastava et al. 2015) with scikit-learn's digits.

Captions say which digits a clip shows and how they start to move: "a 3 moves slowly up left and a 7
moves fast down". `movements` returns the same in numbers.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, OnDisk, preload, take

SIZES = {"train": 10_000, "test": 1_000, "extra": 90_000}  # clips; extra has the digits of train
NUM_FRAMES = 17  # 1 + 4·4: video autoencoders that keep the first frame take 1 + 4n frames
SIDE, DIGIT_SIDE = 32, 16  # pixels; SIDE is that of a frame where no other is given
SPEEDS = (1.0, 3.0)  # pixels a frame, slowest and fastest
INK = 8  # grey level from which a pixel belongs to a digit, whose darkest has 16
PACES = ("slowly", "fast")  # below and from the middle of SPEEDS
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


@dataclass(frozen=True)
class Movement:
    """A digit, and how it moves until it is reflected.

    Attributes:
        digit: 0 to 9.
        start: row and column of the digit's upper left corner in the first frame, in pixels.
        velocity: rows and columns in pixels a frame, from the first frame on.
        example: the digit's index among the pictures of its split (`digit_pictures`).
        side: the side of the frames in pixels, whose borders reflect the digit.
    """

    digit: int
    start: tuple[float, float]
    velocity: tuple[float, float]
    example: int = 0
    side: int = SIDE

    @property
    def room(self) -> int:
        """The last place along a side, in pixels; the first is 0."""
        return self.side - DIGIT_SIDE

    @property
    def speed(self) -> float:
        """The speed in pixels a frame, which reflections do not change."""
        return float(np.hypot(*self.velocity))

    @property
    def direction(self) -> str:
        """The nearest of `DIRECTIONS` in the first frame; each stands for 45°."""
        angle = np.arctan2(*self.velocity)
        return DIRECTIONS[round(angle / (np.pi / 4)) % len(DIRECTIONS)]

    @property
    def pace(self) -> str:
        """The speed as a word of `PACES`."""
        return PACES[int(self.speed >= sum(SPEEDS) / 2)]

    def places(self, num_frames: int = NUM_FRAMES) -> np.ndarray:
        """Return the upper left corner in each frame, in whole pixels: ints `[num_frames 2]`."""
        path = np.array(self.start) + np.array(self.velocity) * np.arange(num_frames)[:, None]
        return np.rint(self.room - np.abs(self.room - path % (2 * self.room))).astype(int)


def load_moving_digits(
    split: str,
    size: int = SIDE,
    num_digits: int | None = None,
    *,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `video`: 17 grey frames in which one or two digits move and bounce.

    Frames have `size`×`size` pixels. A digit has 16×16
    pixels, and starts with a uniformly drawn place, direction and speed of 1 to 3 pixels a frame.
    It moves straight, is reflected at the borders, and is shown at the nearest whole pixel. Where
    two digits overlap, the brighter pixel shows: in 99.6 % of the frames of 32×32 with two digits,
    and in 29 % of those of 64×64. The 10,000 clips of `train` show digits of the split `train` of
    the set `digits`; the 1,000 clips of `test` show those of `test`. Further 90,000 clips of digits
    of `train` are the split `extra`, for long trainings on "train+extra". A clip depends on its
    split, index, size and number of digits only. Each clip has one caption (`write_caption`).

    Args:
        size: the side of the frames in pixels.
        num_digits: the digits of each clip. None: one or two, which are equally likely.
        preload_bytes: a split of at most this size is drawn at once and kept in memory. Clips of a
            larger one are drawn when they are read.

    Raises:
        ValueError: the split is unknown, a digit has no room to move, or `num_digits` is below 1.

    Source: Srivastava et al. 2015, section 4.1, with digits by Alpaydin and Kaynak (1998), each
    pixel doubled along both sides.
    """
    clips = Clips(*scenes(split, size, num_digits))
    shape = (NUM_FRAMES, size, size, 1)
    source = OnDisk(clips, {"video": np.dtype(np.uint8)})
    if math.prod(shape) * len(clips) <= preload_bytes:
        source = preload(source, {"video": shape})
    captions = [(caption_of(each),) for each in clips.movements]
    return Dataset("moving_digits", split, source, image_shape=shape, captions=captions)


@dataclass(frozen=True)
class Clips:
    """Records of clips, each drawn when it is read."""

    movements: Sequence[tuple[Movement, ...]]
    pictures: Sequence[Sequence[np.ndarray]]

    def __len__(self) -> int:
        return len(self.movements)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"video": render(self.movements[index], self.pictures[index])}


def movements(
    split: str, size: int = SIDE, num_digits: int | None = None
) -> list[tuple[Movement, ...]]:
    """Return the exact movements of the digits of each clip of a split.

    Args:
        size, num_digits: as of `load_moving_digits`.

    Raises:
        ValueError: as of `load_moving_digits`.
    """
    return scenes(split, size, num_digits)[0]


def scenes(
    split: str, size: int = SIDE, num_digits: int | None = None
) -> tuple[list[tuple[Movement, ...]], list[list[np.ndarray]]]:
    """Return the movements and the pictures of the digits of each clip, as `render` takes them.

    Args:
        size, num_digits: as of `load_moving_digits`.

    Raises:
        ValueError: as of `load_moving_digits`.
    """
    if size <= DIGIT_SIDE:
        raise ValueError(
            f"frames of {size} pixels a side: a digit has {DIGIT_SIDE} pixels a side, so it cannot "
            f"move: take a larger size, such as {SIDE}"
        )
    if num_digits is not None and num_digits < 1:
        raise ValueError(f"num_digits must be at least 1, or None for one or two, not {num_digits}")
    digits, moving, pictures = _digits(), [], []
    for part, index in _clips(split):
        images, labels = digits["test" if part == "test" else "train"]
        moving.append(_movements(labels, size, num_digits, list(SIZES).index(part), index))
        pictures.append([images[each.example] for each in moving[-1]])
    return moving, pictures


def caption_of(moving: Sequence[Movement]) -> str:
    """Return the caption of a clip with these movements."""
    return write_caption([(each.digit, each.pace, each.direction) for each in moving])


def render(
    moving: Sequence[Movement], pictures: Sequence[np.ndarray], num_frames: int = NUM_FRAMES
) -> np.ndarray:
    """Return a clip of moving digits: bytes `[num_frames side side 1]`.

    Args:
        moving: one or more movements in frames of one side.
        pictures: one for each movement, bytes `[DIGIT_SIDE DIGIT_SIDE]`.
    """
    video = np.zeros((num_frames, moving[0].side, moving[0].side, 1), np.uint8)
    for movement, picture in zip(moving, pictures, strict=True):
        for frame, (row, column) in zip(video, movement.places(num_frames).tolist(), strict=True):
            place = frame[row : row + DIGIT_SIDE, column : column + DIGIT_SIDE]
            np.maximum(place, picture[..., None], out=place)
    return video


def optical_flow(
    moving: Sequence[Movement], pictures: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact flow of a clip between consecutive frames, and where it is known.

    A pixel of a digit goes where the digit goes, and a pixel of the background stays. The flow is
    not known where two digits overlap, and where a digit covers or uncovers the background.

    Args:
        moving, pictures: as of `render`.

    Returns:
        Rows and columns in pixels a frame, ints `[NUM_FRAMES - 1 side side 2]`, and bools
        `[NUM_FRAMES - 1 side side]`, True where the flow is known.
    """
    shape = NUM_FRAMES, moving[0].side, moving[0].side
    flow, owners = np.zeros((*shape, 2), int), np.zeros(shape, int)
    inked = [render([m], [p])[..., 0] >= INK for m, p in zip(moving, pictures, strict=True)]
    for number, (movement, ink) in enumerate(zip(moving, inked, strict=True), 1):
        steps = np.diff(movement.places(), axis=0, append=0)
        flow += ink[..., None] * steps[:, None, None]
        owners += number * ink
    alone = sum(ink.astype(int) for ink in inked) <= 1
    frames, rows, columns = np.indices((NUM_FRAMES - 1, *shape[1:]))
    flow = np.where(alone[:-1, ..., None], flow[:-1], 0)
    target = frames + 1, rows + flow[..., 0], columns + flow[..., 1]
    return flow, alone[:-1] & (owners[target] == owners[:-1])


def write_caption(described: Sequence[tuple[int, str, str]]) -> str:
    """Return the caption of digits, each given as the digit, its pace and its direction.

    For example `[(3, "slowly", "up left"), (7, "fast", "down")]` gives "a 3 moves slowly up left
    and a 7 moves fast down".
    """
    return " and ".join(
        f"a {digit} moves {pace} {direction}" for digit, pace, direction in described
    )


def parse_caption(caption: str) -> list[tuple[int, str, str]]:
    """Return digits, paces and directions of a caption, in its order: inverts `write_caption`.

    Raises:
        ValueError: the caption is not one of this data set.
    """
    form = rf"a (\d) moves ({'|'.join(PACES)}) ({'|'.join(DIRECTIONS)})"
    found = [re.fullmatch(form, part) for part in caption.split(" and ")]
    if None in found:
        raise ValueError(
            f"the caption {caption!r} is not one of moving digits: expected for example 'a 3 moves "
            "slowly up left and a 7 moves fast down'"
        )
    return [(int(match[1]), match[2], match[3]) for match in found]


def digit_pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits that move in a split, and their classes.

    Returns:
        Bytes `[examples DIGIT_SIDE DIGIT_SIDE]`, and ints `[examples]`.

    Raises:
        KeyError: the split is neither "train" nor "test".
    """
    return _digits()[split]


def _clips(split: str) -> list[tuple[str, int]]:
    """Return the part, a key of `SIZES`, and the index of each clip of a split."""
    members = {part: lambda part=part: [(part, i) for i in range(SIZES[part])] for part in SIZES}
    return [clip for part in take(split, members) for clip in part]


def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by split the digits of `Digits`, doubled in size, and their classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    return {"train": (train, train_labels), "test": (test, test_labels)}


def _movements(
    labels: np.ndarray, side: int, num_digits: int | None, *seed: int
) -> tuple[Movement, ...]:
    generator, moving = np.random.default_rng(seed), []
    for _ in range(num_digits or generator.integers(1, 3)):
        example = int(generator.integers(len(labels)))
        start, angle = generator.uniform(0, side - DIGIT_SIDE, 2), generator.uniform(0, 2 * np.pi)
        velocity = generator.uniform(*SPEEDS) * np.array([np.sin(angle), np.cos(angle)])
        place, moved = tuple(start.tolist()), tuple(velocity.tolist())
        moving.append(Movement(int(labels[example]), place, moved, example, side))
    return tuple(moving)
