"""Measures of Pong: whether the paddle follows the actions, and the sound follows the ball.

Positions are in rows and columns of the game's screen, 210 by 160, whatever the size of the clips.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from experiments.evaluation.context import Context, Model
from experiments.evaluation.synchrony import MODES
from experiments.inputs.played_clips import PlayedClips
from experiments.inputs.sound_and_video import Clips
from genjax.data.sets.atari import GAME_RATE
from genjax.metrics.synchrony import chance_synchrony, detect_onsets, synchrony

SCREEN = np.array([210, 160])  # rows and columns
FIELD = np.array([[34, 0], [194, 160]])  # between the walls: first row and column, and the ends
PADDLES = {  # the columns in which they move
    "left": np.array([[34, 16], [194, 20]]),
    "right": np.array([[34, 140], [194, 144]]),
}
BALL_AREA, BALL_CONTRAST = 4 * 2, 236 - 87  # in pixels of the screen, and in grey levels
SEEN = 0.5  # share of the ball's light that counts as a ball
MOVES = 1.0  # rows or columns a frame: a slower ball has no direction
HIDDEN = 2  # frames in which a paddle may hide a ball that is in play
TOLERANCE = 2  # frames
GAME = "pong"  # where the data set does not say it, as of `load_atari`
FRAME_SKIP = 4  # game frames of a frame, where the data set does not say it

Videos = UInt8[np.ndarray, "clips frames size size 1"]
Places = Float[np.ndarray, "clips frames"]


def background(videos: Videos) -> Float[np.ndarray, "size size"]:
    """Return the median of all frames, in which neither ball nor paddles are left."""
    return np.median(videos[..., 0], axis=(0, 1))


def _inside(size: int, part: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of pictures in which a part of the screen is."""
    scale = SCREEN / size
    ends = zip(np.floor(part[0] / scale), np.ceil(part[1] / scale), strict=True)
    return tuple(slice(int(low), int(high)) for low, high in ends)


def _light(videos: Videos, behind: np.ndarray) -> Float[np.ndarray, "clips frames size size"]:
    """Return by how much the frames are brighter than the background."""
    return np.clip(videos[..., 0] - behind, 0, None)


def _middles(size: int, axis: int) -> Float[np.ndarray, " size"]:
    """Return the rows or columns of the screen in the middle of pixels."""
    return (np.arange(size) + 0.5) * SCREEN[axis] / size


def paddle_rows(videos: Videos, behind: np.ndarray) -> Places:
    """Return the row of the right paddle's middle in each frame, NaN where nothing is seen."""
    size = videos.shape[2]
    rows, columns = _inside(size, PADDLES["right"])
    light = _light(videos, behind)[..., rows, columns].sum(-1)
    with np.errstate(invalid="ignore"):
        return (light * _middles(size, 0)[rows]).sum(-1) / light.sum(-1)


def ball_places(videos: Videos, behind: np.ndarray) -> Float[np.ndarray, "clips frames 2"]:
    """Return row and column of the ball's middle in each frame, NaN where there is none.

    It is the middle of the light in the brightest square of 3×3 pixels between the walls. Light in
    the paddles' columns does not count.
    """
    size, field = videos.shape[2], np.zeros(videos.shape[2:4], bool)
    field[_inside(size, FIELD)] = True
    for paddle in PADDLES.values():
        field[_inside(size, paddle)] = False
    light = np.pad(_light(videos, behind) * field, ((0, 0), (0, 0), (1, 1), (1, 1)))
    squares = np.lib.stride_tricks.sliding_window_view(light, (3, 3), axis=(2, 3))
    sums = squares.sum((-2, -1))
    place = np.unravel_index(sums.reshape(*sums.shape[:2], -1).argmax(-1), sums.shape[2:])
    best, found = squares[(*np.indices(place[0].shape), *place)], []
    total = best.sum((-2, -1))
    with np.errstate(invalid="ignore"):
        for axis in (0, 1):
            offset = (best.sum(-1 - axis) * (-1, 0, 1)).sum(-1) / total
            found.append(_middles(size, axis)[place[axis]] + offset * SCREEN[axis] / size)
    found = np.stack(found, axis=-1)
    found[total < SEEN * BALL_CONTRAST * BALL_AREA * size**2 / SCREEN.prod()] = np.nan
    return found


def turns(places: Float[np.ndarray, "frames 2"]) -> Float[np.ndarray, " turns"]:
    """Return the times at which a ball turns, in frames.

    Along one axis it goes one way from a frame to the next, and soon after the other way. It turns
    where both lines meet.
    """
    velocities, found = np.diff(places, axis=0), []
    for speed, place in zip(velocities.T, places.T, strict=True):
        clear = np.flatnonzero(np.nan_to_num(np.abs(speed)) >= MOVES)
        for i, j in zip(clear, clear[1:], strict=False):
            if speed[i] * speed[j] < 0 and j - i <= HIDDEN + 1:
                meet = (place[j] - place[i] + speed[i] * i - speed[j] * j) / (speed[i] - speed[j])
                found.append(np.clip(meet, i, j + 1))
    return np.array(found)


def events(places: Float[np.ndarray, "frames 2"]) -> Float[np.ndarray, " events"]:
    """Return the times at which a ball turns, comes into play or goes out of it, in frames.

    It is out of play when it is not seen for more than `HIDDEN` frames. Events less than a frame
    apart, such as turns along both axes, are one.
    """
    seen = np.flatnonzero(~np.isnan(places[:, 0]))
    ends = np.concatenate([[-1], seen, [len(places)]])
    gaps = np.flatnonzero(np.diff(ends) > HIDDEN + 1)
    out = [seen[gap - 1] + 0.5 for gap in gaps if gap > 0]
    into = [seen[gap] - 0.5 for gap in gaps if gap < len(seen)]
    found = np.sort(np.concatenate([turns(places), out, into]))
    return found[np.diff(found, prepend=-np.inf) >= 1]


def _sounds_and_events(
    clips: Clips, behind: np.ndarray, first: int, frame_rate: float
) -> dict[str, float]:
    """Return the synchrony of the ball's events and the sounds of clips, paired and unpaired.

    Args:
        first: frame from which on it is measured.
    """
    samples = clips["sound"].shape[1] / clips["video"].shape[1]
    heard = [detect_onsets(x / 2**15, round(samples * frame_rate)) for x in clips["sound"]]
    seen = [events(each) / frame_rate for each in ball_places(clips["video"], behind)]
    # Next to the ends, one of a pair may lie outside the clip.
    low, high = (first + 1) / frame_rate, (clips["video"].shape[1] - 2) / frame_rate
    inner = lambda times: [each[(low < each) & (each < high)] for each in times]
    found, tolerance = {}, TOLERANCE / frame_rate
    for suffix, measure in {"": synchrony, "_unpaired": chance_synchrony}.items():
        of_seen = measure(inner(seen), heard, tolerance)
        of_heard = measure(seen, inner(heard), tolerance)
        rates = of_seen._asdict() | {"false_rate": of_heard.false_rate}
        found |= {f"{name}{suffix}": value for name, value in rates.items()}
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def paddle_errors(
    videos: Videos, real: Videos, behind: np.ndarray, given: int, window: int
) -> dict[str, float]:
    """Return by how many rows the paddle of clips misses that of the game for the same actions.

    One mean is over the frames after the given ones within the first window, and one over all later
    frames. `…_still` is the same for a paddle that stays in its given place.

    Args:
        real: the game's own clips.
        given: number of frames with which the clips start as the real ones.
        window: number of frames that the network sees at once.
    """
    true, found = paddle_rows(real, behind), paddle_rows(videos, behind)
    errors = {
        "paddle_error": np.abs(found - true),
        "paddle_error_still": np.abs(true[:, given - 1 : given] - true),
    }
    parts = {"": slice(given, window), "_beyond": slice(window, None)}
    return {
        f"{name}{suffix}": float(np.nanmean(error[:, part]))
        for name, error in errors.items()
        for suffix, part in parts.items()
        if np.isfinite(error[:, part]).any()
    }


@dataclass(frozen=True)
class PlayedPong:
    """Measure whether samples of Pong sound when the ball turns, and follow the actions.

    The ball is seen in the pixels alone, and onsets are heard in the sound alone. An event is a
    turn of the ball, or that it comes into play or goes out of it. At most two frames lie between
    an event and its sound. `hit_rate` is the share of events that have a sound, `false_rate` the
    share of sounds without an event. `mean_lag` and `lag_spread` are those of sounds behind their
    events, in seconds. Events and sounds within a frame of a clip's ends are left out.

    Samples are of both modalities, and of one given the other (`…_sound_given_video`,
    `…_video_given_sound`). `…_continued` are samples as long as held-out clips, whose first frames
    are given with their sound. `…_real` is the same of held-out clips. `…_unpaired` is that of each
    clip with the next clip's sound: the level of chance.

    `paddle_error` compares the paddle with the emulator's for the same actions, in rows of the
    screen (`paddle_errors`). It is measured in `…_continued` samples if the condition has actions.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ("known_frames",)
    least_held_out: ClassVar[int] = 2  # one clip would be unpaired with itself

    def __post_init__(self):
        condition = self.context.condition
        if not isinstance(condition, PlayedClips):
            raise ValueError(
                "config.evaluation.measures has PlayedPong, which needs "
                "config.condition.name=PlayedClips"
            )
        if (game := dict(self.context.data.options).get("game", GAME)) != GAME:
            raise ValueError(
                f"config.evaluation.measures has PlayedPong, and config.data.options.game is "
                f"{game!r}, whose ball and paddles are elsewhere: leave it out"
            )
        if self.context.num_samples > condition.num_clips:
            raise ValueError(
                f"config.evaluation.num_samples is {self.context.num_samples}, of which "
                f"config.condition.num_clips={condition.num_clips} clips are held out"
            )

    @property
    def frame_rate(self) -> float:
        return GAME_RATE / dict(self.context.data.options).get("frame_skip", FRAME_SKIP)

    def __call__(self, model: Model) -> dict[str, Any]:
        condition = self.context.condition
        labels = np.arange(self.context.num_samples)
        real = {name: clips[labels] for name, clips in condition.held_out.items()}
        behind, report = background(real["video"]), {}
        given = tuple(range(model.functions["known_frames"]))
        modes = {suffix: dict(given=each) for suffix, each in MODES.items()}
        modes["_continued"] = dict(given=given, frames=condition.frames)
        clips = {suffix: model.sample(labels, **changes) for suffix, changes in modes.items()}
        for suffix, each in ({"_real": real} | clips).items():
            first = len(given) if suffix == "_continued" else 0
            found = _sounds_and_events(each, behind, first, self.frame_rate)
            report |= {_with(suffix, name): value for name, value in found.items()}
        if condition.num_actions:
            sizes = len(given), condition.window
            videos = clips["_continued"]["video"], real["video"]
            report |= paddle_errors(*videos, behind, *sizes)
        return report | {"num_samples": len(labels), **model.how}


def _with(suffix: str, name: str) -> str:
    """Return a figure's name with the suffix of its samples, before that of chance."""
    return f"{name.removesuffix('_unpaired')}{suffix}{'_unpaired' * name.endswith('_unpaired')}"
