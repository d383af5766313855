"""The evaluator of Pong against the emulator's screen, and samples wrong in a known way."""

import importlib.util
import itertools
import os

import numpy as np
import pytest

from configs import pong as config_of_pong
from experiments.evaluation import pong
from experiments.evaluation.context import Context
from experiments.evaluation.pong import PlayedPong, ball_places, paddle_errors, paddle_rows, turns
from experiments.inputs.datasets import Data
from experiments.inputs.played_clips import PlayedClips
from genjax.data.sets import atari
from genjax.data.sets.atari import Recording, play

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None and "CI" not in os.environ,
    reason="ale-py is not installed; pip install ale-py",
)

BALL, PADDLE = 236, (92, 186, 92)  # colours: the ball's grey level, and the right paddle's
FRAMES, GIVEN, COUNT, SIZE = 28, 4, 16, 32


@pytest.fixture(scope="module")
def screens():
    """Return screens of a game, and the same as small grey pictures of one clip."""
    frames = list(itertools.islice(play("pong", "pong_player", 4, (5,)), 400))[40:]
    recording = Recording("pong", "pong_player", 1, 4, SIZE, 1, 7680)
    small = np.stack([atari._shrunk(frame.screen, recording) for frame in frames])
    return np.stack([frame.screen for frame in frames]), small[None]


def test_places_in_small_pictures_are_those_of_the_screen(screens):
    """Against colours of the full screen: middles of ball and paddle, within a pixel."""
    large, small = screens
    behind = pong.background(small)
    ball, paddle, errors = ball_places(small, behind)[0], paddle_rows(small, behind)[0], []
    for i, screen in enumerate(large):
        rows, columns = np.nonzero((screen[34:194] == BALL).all(-1))
        clear = len(rows) == 8 and (22 < columns.min() and columns.max() < 138)
        if clear:
            np.testing.assert_allclose(ball[i], (rows.mean() + 34.5, columns.mean() + 0.5), atol=3)
        elif not len(rows):
            assert np.isnan(ball[i]).all()
        rows, _ = np.nonzero((screen[34:194] == PADDLE).all(-1))
        if len(rows) == 64:
            errors.append(abs(paddle[i] - rows.mean() - 34.5))
    assert np.median(errors) < 1 and max(errors) < 210 / SIZE  # the ball lights its columns too
    assert np.isfinite(ball[:, 0]).mean() > 0.5


def test_turns_are_found_within_half_a_frame():
    time = np.arange(12.0)
    places = np.stack([np.abs(10 * (time - 4.25)), 100 - 3 * np.abs(time - 8.5)], axis=1)
    np.testing.assert_allclose(np.sort(turns(places)), [4.25, 8.5], atol=0.5)
    hidden = places.copy()
    hidden[4] = np.nan
    np.testing.assert_allclose(np.sort(turns(hidden)), [4.25, 8.5], atol=0.5)
    gone = places.copy()
    gone[6:] = np.nan
    np.testing.assert_allclose(pong.events(gone), [4.25, 5.5], atol=0.5)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(atari, "EPISODE_CLIPS", COUNT)
        config = config_of_pong.get_config("actions")
        config.data.held_out_split = f"test[:{COUNT}]"
        config.condition.update(frames=FRAMES, num_clips=COUNT)
        fields = dict(config.condition)
        del fields["name"]
        condition = PlayedClips(data=Data.from_config(config), **fields)
        assert len(condition.held_out["video"]) == COUNT
        yield Context(condition.data, None, condition, COUNT)


def test_another_game_is_refused():
    config = config_of_pong.get_config("joint")
    config.data.options.game = "breakout"
    condition = PlayedClips(data=Data.from_config(config), num_actions=0, frames=FRAMES)
    with pytest.raises(ValueError, match="game is 'breakout', whose ball and paddles are elsewh"):
        PlayedPong(Context(condition.data, None, condition, COUNT))


class StandIn:
    """A model whose samples are the held-out clips after a change."""

    how, functions = {"sampler": "none"}, {"known_frames": GIVEN}

    def __init__(self, clips, change=lambda clips: {}):
        self.clips, self.change = clips, change

    def sample(self, labels, given, frames=16):
        cut = {
            "video": self.clips["video"][:, :frames],
            "sound": self.clips["sound"][:, : frames * 512],
        }
        cut = {name: a[labels] for name, a in cut.items()}
        return cut | {n: a for n, a in self.change(cut).items() if n not in given}


def test_the_game_itself_is_in_time_and_follows_its_actions(context):
    clips = context.condition.held_out
    report = PlayedPong(context)(StandIn(clips))
    for suffix in ("", "_sound_given_video", "_video_given_sound", "_continued", "_real"):
        assert report[f"hit_rate{suffix}"] >= 0.9 and report[f"false_rate{suffix}"] <= 0.1
    assert report["hit_rate_real_unpaired"] < 0.5 < report["false_rate_real_unpaired"]
    assert report["paddle_error"] == 0 == report["paddle_error_beyond"]
    assert report["paddle_error_still"] > 5 and report["num_samples"] == COUNT


def test_late_sounds_and_silence_are_found_out(context):
    clips = context.condition.held_out
    late = StandIn(clips, lambda clips: {"sound": np.roll(clips["sound"], 3 * 512, axis=1)})
    report = PlayedPong(context)(late)
    assert report["hit_rate_continued"] < 0.4 and report["false_rate_continued"] > 0.6
    assert report["hit_rate_video_given_sound"] >= 0.9  # the clips themselves
    silent = PlayedPong(context)(StandIn(clips, lambda c: {"sound": np.zeros_like(c["sound"])}))
    assert silent["hit_rate"] == 0 and "false_rate" not in silent and "mean_lag" not in silent


def test_a_paddle_that_stays_or_is_elsewhere_is_measured(context):
    real = context.condition.held_out["video"]
    behind = pong.background(real)
    still = np.repeat(real[:, GIVEN - 1 : GIVEN], FRAMES, axis=1)
    found = paddle_errors(still, real, behind, GIVEN, 16)
    rows = paddle_rows(real, behind)
    missed = np.abs(rows[:, GIVEN - 1 : GIVEN] - rows)
    for suffix, part in (("", slice(GIVEN, 16)), ("_beyond", slice(16, None))):
        expected = pytest.approx(np.nanmean(missed[:, part]))
        assert found[f"paddle_error{suffix}"] == found[f"paddle_error_still{suffix}"] == expected
    lower = real.copy()  # by a pixel, between the walls
    lower[:, :, 7:29, 28] = real[:, :, 6:28, 28]
    before, after = paddle_rows(real, behind), paddle_rows(lower, behind)
    inside = (before > 70) & (before < 160)
    np.testing.assert_allclose((after - before)[inside], 210 / SIZE, rtol=1e-5)
