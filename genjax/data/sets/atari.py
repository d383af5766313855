"""Atari games with sound and actions: frames, sound and actions in exact synchrony, from ale-py.

Pong's sounds are those of its ball: at the walls, at the paddles, and when a point is scored. The
emulator is the Arcade Learning Environment (Bellemare et al. 2013).

The wheel of ale-py (GPL-2) contains the games' ROMs, whose copyright is their makers'. Whether you
may use them depends on where you live and what for. genjax contains no ROM and no recording.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from genjax.data.dataset import Dataset, InMemory, num_threads, take
from genjax.data.made import made_once
from genjax.data.sounds import resample, to_int16

SIZES = {"train": 4096, "test": 256}  # clips
EPISODE_CLIPS = 32  # clips that follow each other in one episode
GAME_RATE, GAME_SAMPLES = 60, 512  # game frames a second, and samples of sound of each
STICKINESS = 0.9  # probability that a random player keeps its action for one more frame
START_FRAMES = (60, 180)  # game frames before the first clip: Pong serves after 60
BALL_ROW, PADDLE_ROW = 54, 51  # in Pong's memory; the paddle's is that of its upper end
HALF_PADDLE = 8  # rows


class Frame(NamedTuple):
    """A frame of a game, and what happens until the next one.

    Attributes:
        screen: the first game frame of this frame's time.
        sound: unsigned, with silence at 128, at 30,720 Hz.
        action: the number of the held action among the game's own actions.
        over: whether the game ends in this time.
    """

    screen: UInt8[np.ndarray, "210 160 3"]
    sound: UInt8[np.ndarray, " samples"]
    action: int
    over: bool


@dataclass(frozen=True)
class Recording:
    """How episodes become clips; the arguments of `load_atari`."""

    game: str
    policy: str
    num_frames: int
    frame_skip: int
    size: int
    channels: int
    sample_rate: int

    @property
    def frame_samples(self) -> int:
        """The samples of sound of a frame.

        Raises:
            ValueError: they are no whole number.
        """
        samples = self.sample_rate * self.frame_skip / GAME_RATE
        if samples != round(samples):
            raise ValueError(
                f"sample_rate {self.sample_rate} gives {samples:.2f} samples for each frame of "
                f"{self.frame_skip} game frames at 60 a second: choose one that gives a whole "
                "number, such as 7680"
            )
        return round(samples)


def load_atari(
    split: str,
    *,
    game: str = "pong",
    policy: str = "random_player",
    num_frames: int = 17,
    frame_skip: int = 4,
    size: int = 64,
    channels: int = 1,
    sample_rate: int = 7680,
) -> Dataset:
    """Return `video`, `audio` and `action`: clips of an Atari game that a player plays.

    `video` has bytes `[num_frames size size channels]`, whole screens averaged over areas. `audio`
    is int16 `[samples 1]`, as long as the frames. `action` is int32 `[num_frames]`, the number of
    the action that is held during each frame (`action_names`). Frame i shows the game as its sound
    begins, at sample i·sample_rate·frame_skip/60.

    A clip depends on its split and index only. 32 clips follow each other in one episode. Episodes
    are played once, and then kept in `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Args:
        game: a name of ale-py's games, such as "pong", "breakout" or "space_invaders".
        policy: "random_player", for any game, or "pong_player", which follows the ball.
        frame_skip: game frames, 60 a second, for each frame of the clip.
        channels: 3 for RGB, 1 for grey levels.
        sample_rate: in Hz; the game's own is 30,720.

    Raises:
        ImportError: ale-py is not installed.
        ValueError: the split, the game or the policy is unknown, a frame does not last a whole
            number of samples, or clips have no frames, no pixels or other channels.
    """
    if min(num_frames, frame_skip, size) < 1 or channels not in (1, 3):
        raise ValueError(
            f"num_frames is {num_frames}, frame_skip {frame_skip}, size {size} and channels "
            f"{channels}: give 1 or more of each, and 1 or 3 channels"
        )
    recording = Recording(game, policy, num_frames, frame_skip, size, channels, sample_rate)
    recording.frame_samples, _player(policy), _emulator(game)  # raise before any frame is played
    members = {part: lambda part=part: [(part, i) for i in range(SIZES[part])] for part in SIZES}
    clips = [clip for each in take(split, members) for clip in each]
    names = list(dict.fromkeys((part, i // EPISODE_CLIPS) for part, i in clips))
    with ThreadPoolExecutor(num_threads()) as pool:
        played = pool.map(lambda name: _episode(recording, *name), names)
        episodes = dict(zip(names, played, strict=True))
    place = lambda part, i: (episodes[part, i // EPISODE_CLIPS], i % EPISODE_CLIPS)
    found = [place(*clip) for clip in clips]
    features = ("video", "audio", "action")
    arrays = {name: np.stack([episode[name][i] for episode, i in found]) for name in features}
    return Dataset("atari", split, InMemory(arrays))


def action_names(game: str) -> tuple[str, ...]:
    """Return the names of a game's actions, by number.

    Raises:
        ImportError, ValueError: as of `load_atari`.
    """
    return tuple(action.name for action in _emulator(game).getMinimalActionSet())


def play(game: str, policy: str, frame_skip: int, seed: tuple[int, ...]) -> Iterator[Frame]:
    """Yield the frames of a game without end. A game that is over begins again.

    Raises:
        ImportError, ValueError: as of `load_atari`.
    """
    ale, player, generator = _emulator(game), _player(policy), np.random.default_rng(seed)
    actions, action = ale.getMinimalActionSet(), 0
    while True:
        action = player(ale, len(actions), action, generator)
        sounds = []
        for step in range(frame_skip):
            ale.act(actions[action])
            if step == 0:
                screen = ale.getScreenRGB()
            sounds.append(np.array(ale.getAudio()))
        yield Frame(screen, np.concatenate(sounds), action, over := ale.game_over())
        if over:
            ale.reset_game()


def random_player(ale: Any, num_actions: int, action: int, generator: np.random.Generator) -> int:
    """Return the last action, or now and then a random one."""
    return action if generator.random() < STICKINESS else int(generator.integers(num_actions))


def pong_player(ale: Any, num_actions: int, action: int, generator: np.random.Generator) -> int:
    """Return the action that moves Pong's right paddle to the ball, or now and then a random one.

    Actions 2 and 3, "RIGHT" and "LEFT", are up and down.
    """
    if generator.random() > STICKINESS:
        return int(generator.integers(num_actions))
    ball, paddle = (int(ale.getRAM()[place]) for place in (BALL_ROW, PADDLE_ROW))
    return 2 if ball < paddle + HALF_PADDLE else 3


def _player(policy: str) -> Callable[..., int]:
    players = {"random_player": random_player, "pong_player": pong_player}
    if policy not in players:
        raise ValueError(f"policy {policy!r} is unknown: it is one of {', '.join(players)}")
    return players[policy]


def _emulator(game: str) -> Any:
    """Return an emulator with a game, which repeats no action by itself."""
    try:
        from ale_py import ALEInterface, LoggerMode, roms
    except ImportError as error:
        raise ImportError(
            "dataset 'atari' plays games with ale-py, which is not installed: pip install ale-py"
        ) from error
    if game not in roms.get_all_rom_ids():
        raise ValueError(
            f"ale-py has no game {game!r}; it has {', '.join(roms.get_all_rom_ids()[:5])}, …"
        )
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setBool("sound_obs", True)
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(game))
    return ale


def _episode(recording: Recording, part: str, number: int) -> dict[str, np.ndarray]:
    """Return the clips of an episode, from the cache if this ale-py has played it before."""
    emulator = importlib.metadata.version("ale-py")
    description = repr((asdict(recording), part, number, EPISODE_CLIPS, emulator))
    seed = list(SIZES).index(part), number
    return made_once("atari", description, lambda: record(recording, seed))


def record(recording: Recording, seed: tuple[int, int]) -> dict[str, np.ndarray]:
    """Play an episode and return its clips, `EPISODE_CLIPS` of each feature.

    A clip that a game's end would cut is left out.
    """
    frames = play(recording.game, recording.policy, recording.frame_skip, seed)
    skipped = np.random.default_rng((*seed, 1)).integers(*START_FRAMES) // recording.frame_skip
    played, starts, start = [], [], int(skipped)
    while len(starts) < EPISODE_CLIPS:
        frame = next(frames)
        played.append(frame._replace(screen=_shrunk(frame.screen, recording)))
        if frame.over:
            start = max(start, len(played))
        elif len(played) == start + recording.num_frames:
            starts.append(start)
            start = len(played)
    heard = np.concatenate([frame.sound for frame in played]).astype(float)[:, None] / 128 - 1
    sound = to_int16(resample(heard, GAME_RATE * GAME_SAMPLES, recording.sample_rate))
    of_frames = sound.reshape(len(played), recording.frame_samples)
    clips = [slice(start, start + recording.num_frames) for start in starts]
    return {
        "video": np.stack([[frame.screen for frame in played[clip]] for clip in clips]),
        "audio": np.stack([of_frames[clip].reshape(-1, 1) for clip in clips]),
        "action": np.array([[f.action for f in played[clip]] for clip in clips], np.int32),
    }


def _shrunk(screen: np.ndarray, recording: Recording) -> np.ndarray:
    """Return a screen as bytes `[size size channels]`."""
    from PIL import Image

    picture = Image.fromarray(screen).convert({1: "L", 3: "RGB"}[recording.channels])
    side = recording.size
    small = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
    return small.reshape(side, side, recording.channels)
