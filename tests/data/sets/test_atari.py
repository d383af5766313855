"""Atari with sound: what is seen explains what is heard, and the action moves the paddle."""

import importlib.util
import itertools
import os
import sys

import numpy as np
import pytest

from genjax.data import Batches, load_dataset
from genjax.data.sets import atari
from genjax.data.sets.atari import Recording, action_names, load_atari, play, record

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None and "CI" not in os.environ,
    reason="ale-py is not installed; pip install ale-py",
)

BALL, PADDLE = 236, (92, 186, 92)  # colours: the ball's grey level, and the right paddle's
FIELD = slice(34, 194)  # rows between the upper and the lower wall


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return the arguments of small sets, whose cache is a folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(atari, "EPISODE_CLIPS", 3)
    return dict(num_frames=5, size=16)


def ball_places(frames):
    """Return row and column of the ball in each frame, NaN where there is none."""
    found = [np.nonzero((frame.screen[FIELD] == BALL).all(-1)) for frame in frames]
    return np.array(
        [np.mean(places, axis=1) if places[0].size else (np.nan,) * 2 for places in found]
    )


def events(places):
    """Return the frames in which the ball turns, comes into play or goes out of it."""
    there = ~np.isnan(places[:, 0])
    found = set(np.flatnonzero(there[1:] != there[:-1]) + 1)
    for axis in places.T:
        last = 0.0
        for frame, step in enumerate(np.nan_to_num(np.diff(axis)), 1):
            if step * last < 0:
                found.add(frame)
            last = step or last * there[frame]
    return np.array(sorted(found))


@pytest.mark.parametrize("policy", ["random_player", "pong_player"])
def test_every_sound_of_pong_starts_within_two_frames_of_an_event_of_the_ball(policy):
    """Fewer than a quarter of all frames are as near to an event, so chance does not explain it."""
    frames = list(itertools.islice(play("pong", policy, 1, (0,)), 1000))
    loud = np.array([frame.sound.max() > 128 for frame in frames])
    onsets, seen = np.flatnonzero(loud[1:] & ~loud[:-1]) + 1, events(ball_places(frames))
    assert len(onsets) >= 12
    lag = np.abs(onsets[:, None] - seen).min(axis=1)
    assert lag.max() <= 2
    by_chance = np.abs(np.arange(60, 1000)[:, None] - seen).min(axis=1)  # from the first serve on
    assert np.mean(by_chance <= 2) < 0.25


def test_actions_move_the_paddle():
    assert action_names("pong")[:4] == ("NOOP", "FIRE", "RIGHT", "LEFT")
    frames = list(itertools.islice(play("pong", "random_player", 4, (3,)), 200))
    rows = [np.nonzero((f.screen[FIELD] == PADDLE).all(-1))[0] for f in frames]
    middle = np.array([each.mean() if len(each) == 64 else np.nan for each in rows])  # all of it
    moved = {action: [] for action in range(6)}
    for before, after, frame, last in zip(
        middle, middle[1:], frames, [None, *frames], strict=False
    ):
        if last is not None and last.action == frame.action and 30 < before < 130:
            moved[frame.action].append(after - before)  # while the action is held
    assert np.nanmean(moved[2]) < -5 and np.nanmean(moved[3]) > 5  # RIGHT is up, LEFT down
    assert abs(np.nanmean(moved[0])) < 5


def test_a_clip_holds_frames_sound_and_actions_of_the_same_time(small):
    """At the game's own rate the sound is the game's, sample by sample."""
    recording = Recording("pong", "random_player", 5, 4, 16, 3, 30_720)
    clips = record(recording, (1, 0))
    assert clips["video"].shape == (3, 5, 16, 16, 3) and clips["audio"].shape == (3, 5 * 2048, 1)
    frames = list(itertools.islice(play("pong", "random_player", 4, (1, 0)), 70))
    game = np.concatenate([frame.sound for frame in frames]).astype(int) - 128
    start = int(np.random.default_rng((1, 0, 1)).integers(60, 180) // 4)
    for clip, place in enumerate((start, start + 5, start + 10)):
        expected = game[place * 2048 : (place + 5) * 2048] * 256
        np.testing.assert_array_equal(clips["audio"][clip, :, 0], expected)
        played = frames[place : place + 5]
        np.testing.assert_array_equal(clips["action"][clip], [frame.action for frame in played])
        means = [frame.screen.astype(float).mean((0, 1)) for frame in played]
        np.testing.assert_allclose(clips["video"][clip].mean((1, 2)), means, atol=1)
    assert np.any(clips["audio"])


def test_the_set_is_made_by_split_and_index_only(small, tmp_path, monkeypatch):
    first = load_dataset("atari", "train[2:5]", **small)
    assert first.image_shape == (5, 16, 16, 1)
    shapes = {name: array.shape[1:] for name, array in first.source[:].items()}
    assert shapes == {"video": (5, 16, 16, 1), "audio": (5 * 512, 1), "action": (5,)}
    cached = len(list((tmp_path / "genjax").iterdir()))
    assert cached == 2  # episodes, of which the clips 2 to 4 are parts
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = load_atari("train[4:5]+test[:1]", **small).source[:]
    for name, array in first.source[:].items():
        np.testing.assert_array_equal(again[name][0], array[2])
    assert not np.array_equal(again["video"][0], again["video"][1])
    batch = Batches(first, 2, seed=0, image_shape=(5, 16, 16, 1))[0]
    assert set(batch) == {"video", "audio", "action"}


def test_an_episode_of_another_ale_py_is_played_anew(small, monkeypatch):
    played, recording = [], Recording("pong", "random_player", 5, 4, 16, 1, 7680)
    stand_in = lambda *_: played.append(1) or {"action": np.zeros((3, 5), np.int32)}
    monkeypatch.setattr(atari, "record", stand_in)
    for version, count in (("0.11.2", 1), ("0.11.2", 1), ("0.12.0", 2)):
        monkeypatch.setattr(atari.importlib.metadata, "version", lambda name, v=version: v)
        atari._episode(recording, "train", 0)
        assert len(played) == count


def test_no_clip_goes_over_the_end_of_a_game(small, monkeypatch):
    """Frame i has the grey level i; the game ends in frames 51 and 61."""

    def counted(game, policy, frame_skip, seed):
        for number in range(200):
            screen = np.full((210, 160, 3), number, np.uint8)
            yield atari.Frame(screen, np.full(2048, 128, np.uint8), 0, number in (51, 61))

    monkeypatch.setattr(atari, "play", counted)
    monkeypatch.setattr(atari, "START_FRAMES", (4 * 45, 4 * 45 + 1))
    clips = record(Recording("pong", "random_player", 5, 4, 16, 1, 7680), (0, 0))
    # 45 to 49 come before the end in 51, 52 to 56 after it, and the next would hold 61.
    np.testing.assert_array_equal(clips["video"][:, 0, 0, 0, 0], [45, 52, 62])
    np.testing.assert_array_equal(clips["video"][:, -1, 0, 0, 0], [49, 56, 66])
    frames = itertools.islice(play("breakout", "random_player", 16, (0, 0)), 400)
    assert any(frame.over for frame in frames)  # a random player loses its lives in two minutes


def test_what_is_missing(monkeypatch):
    with pytest.raises(
        ValueError, match="'random_playr' is unknown: it is one of random_player, p"
    ):
        load_atari("train", policy="random_playr")
    with pytest.raises(ValueError, match="ale-py has no game 'pingpong'"):
        load_atari("train", game="pingpong")
    with pytest.raises(ValueError, match="8000 gives 533.33 samples for each frame of 4 game"):
        load_atari("train", sample_rate=8000)
    for none in ("num_frames", "frame_skip", "size"):  # without frames a recording has no end
        with pytest.raises(ValueError, match=f"{none} (is )?0.*: give 1 or more of each"):
            load_atari("train", **{none: 0})
    with pytest.raises(ValueError, match="channels 2: give .* 1 or 3 channels"):
        load_atari("train", channels=2)
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_atari("valid")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match="pip install ale-py"):
        load_atari("train")


def test_pongs_player_returns_the_ball():
    """Balls that leave the field to the right, behind the own paddle, are lost."""
    lost = {}
    for policy in ("random_player", "pong_player"):
        places = ball_places(itertools.islice(play("pong", policy, 1, (0,)), 1000))
        left = ~np.isnan(places[:-1, 1]) & np.isnan(places[1:, 1])
        lost[policy] = int(np.sum(places[:-1, 1][left] > 80))
    assert lost["pong_player"] <= 2 and lost["random_player"] >= 5
