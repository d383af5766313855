"""Evaluators of videos, with samples that are real clips or wrong in one known way."""

import dataclasses
import functools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation import tracking
from experiments.evaluation import videos as module
from experiments.evaluation.context import Context
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.videos import Motion, MovingDigits, VideoDistance, real_videos
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.data import to_float
from genjax.data.sets.moving_digits import render, scenes
from genjax.pretrained.variables import parameters_digest


def data(held_out="test[:6]", train="train[:6]"):
    return Data("moving_digits", train, held_out, None, (17, 32, 32, 1), feature="video")


def context(held_out="test[:6]", prompts=True, count=100):
    condition = SimpleNamespace(num_classes=0, **({"prompts": ()} if prompts else {}))
    return Context(data(held_out), space=None, condition=condition, num_samples=count)


class StandIn:
    """A model that knows the held-out clips by their captions, and changes them by a function."""

    how = {"sampler": "none"}

    def __init__(self, real, change=lambda clips: clips):
        self.asked = []
        self.clips, self.change = real.held_out, change
        self.captions = real.captions

    def sample(self, labels, prompts=None):
        self.asked.append(prompts)
        rows = [self.captions.index(text) for text in prompts] if prompts else range(len(labels))
        return self.change(self.clips[list(rows)])


@pytest.fixture(scope="module")
def real():
    return real_videos(data(), 100)


@pytest.fixture
def tracked_once(monkeypatch):
    """Each clip is tracked once, though several tests look at it."""
    known = {}

    def track(video):
        key = video.tobytes()
        if key not in known:
            known[key] = tracking.track(video)
        return known[key]

    monkeypatch.setattr(module, "track", track)


def test_moving_digits_of_a_perfect_model(real, tracked_once):
    """Samples that are the asked clips follow their captions, and wrong ones do not."""
    perfect = MovingDigits(context())(StandIn(real))
    for name in ("caption", "digits", "directions"):
        assert perfect[f"{name}_accuracy"] == perfect[f"{name}_accuracy_real"] == 1
    assert perfect["whole"] == perfect["whole_real"] == 1
    assert perfect["speed_distance"] == 0 and perfect["speed_p_value"] == 1
    assert 1 < perfect["speed"] < 3
    assert perfect["warping_error"] < 0.04  # 0 where the tracker finds the exact places
    assert perfect["num_samples"] == 6 and perfect["sampler"] == "none"
    others = MovingDigits(context())(StandIn(real, lambda clips: np.roll(clips, 1, 0)))
    assert others["caption_accuracy"] <= 1 / 6 and others["caption_accuracy_real"] == 1
    assert others["whole"] == 1
    blind = MovingDigits(context(prompts=False))(model := StandIn(real))
    assert "caption_accuracy" not in blind and blind["speed"] == perfect["speed"]
    assert model.asked == [None]


def test_moving_digits_of_longer_samples_are_measured_at_both_ends(real, tracked_once):
    """Samples that are rolled out are 33 frames long, and the data's clips 17."""
    rolled = np.stack([render(*scene, 33) for scene in zip(*scenes("test[:6]"), strict=True)])
    rows = np.random.default_rng(0).permutation(6)  # the order of real_videos
    np.testing.assert_array_equal(rolled[rows, :17], real.held_out)
    measured = lambda samples: MovingDigits(context())(StandIn(real, lambda clips: samples))
    late = lambda report: {name for name in report if "_late" in name}
    short, longer = MovingDigits(context())(StandIn(real)), measured(rolled[rows])
    assert {name: longer[name] for name in longer.keys() - late(longer)} == short
    for name in ("caption", "digits", "directions"):
        assert longer[f"{name}_accuracy_late"] == longer[f"{name}_accuracy_late_real"] == 1
    assert longer["whole_late"] == 1 and longer["frames_in_range_late"] >= 0.95
    assert longer["speed_late"] == pytest.approx(longer["speed"], rel=0.1)

    spoilt = rolled[rows]
    spoilt[:, 17:] = spoilt[:, 17:] // 2 + 100  # paler digits on grey
    wrong = measured(spoilt)
    assert {name: wrong[name] for name in wrong.keys() - late(wrong)} == short
    assert wrong["frames_in_range_late"] == pytest.approx(1 / 17, abs=0.01)
    swapped = measured(np.concatenate([rolled[rows, :17], rolled[np.roll(rows, 1), 17:]], axis=1))
    assert swapped["caption_accuracy"] == 1 and swapped["caption_accuracy_late"] <= 1 / 6


def test_motion_of_equal_and_of_frozen_clips():
    held_out = real_videos(data("test[:200]", "train[:200]"), 200)
    condition = SimpleNamespace(num_classes=0)
    unconditional = Context(data("test[:200]", "train[:200]"), None, condition, 200)
    equal = Motion(unconditional)(StandIn(held_out))
    differences = np.abs(np.diff(held_out.held_out.astype(float), axis=1)).mean()
    assert equal["motion"] == pytest.approx(differences, rel=1e-12)
    assert equal["motion_real"] == equal["motion"] and equal["motion_distance"] == 0
    without_labels = dataclasses.replace(unconditional, labels="training")
    assert Motion(without_labels)(StandIn(held_out)) == equal | {"labels": "training"}
    frozen = lambda clips: np.repeat(clips[:, :1], 17, axis=1)
    still = Motion(unconditional)(StandIn(held_out, frozen))
    assert still["motion"] == 0 and still["motion_distance"] == 1
    assert still["motion_p_value"] < 1e-10 and still["motion_detectable"] < 0.21


def continued(clips):
    """Return clips that stand still after their last frame."""
    return np.concatenate([clips, np.repeat(clips[:, -1:], 16, axis=1)], axis=1)


def test_longer_samples_are_cut_to_the_clips(real, monkeypatch):
    """So a roll-out that starts as the clips do moves as they do, and is as near to them."""
    monkeypatch.setattr(module, "require_lpips", lambda: None)
    monkeypatch.setattr(module, "load_vgg16", lambda: (None, {}))
    monkeypatch.setattr(module, "vgg16_features", cells)
    monkeypatch.setattr(module, "_frame_features", module._frame_features.__wrapped__)
    for evaluator in (Motion, VideoDistance):
        measure = evaluator(context())
        assert measure(StandIn(real, continued)) == measure(StandIn(real))


@pytest.mark.parametrize("evaluator", [Motion, MovingDigits])
def test_shorter_samples_are_refused(evaluator, real):
    with pytest.raises(ValueError, match="samples of 9 frames are measured beside clips of 17"):
        evaluator(context())(StandIn(real, lambda clips: clips[:, :9]))


def cells(variables, images):
    """Return means over cells, in place of VGG16's features."""
    return jnp.abs(images[:, 1:31, 1:31, 0]).reshape(-1, 3, 10, 3, 10).mean((2, 4)).reshape(-1, 9)


def test_distances_of_frames_and_of_clips(real, monkeypatch):
    """Shuffled frames are the same frames, and other clips."""
    monkeypatch.setattr(module, "require_lpips", lambda: None)
    monkeypatch.setattr(module, "load_vgg16", lambda: (None, {}))
    monkeypatch.setattr(module, "vgg16_features", cells)
    monkeypatch.setattr(module, "_frame_features", module._frame_features.__wrapped__)
    shuffle = lambda clips: clips[:, np.random.default_rng(0).permutation(17)]
    equal = VideoDistance(context())(StandIn(real))
    shuffled = VideoDistance(context())(StandIn(real, shuffle))
    assert equal["fvd_vgg16"] < 1e-12 and equal["fd_vgg16"] < 1e-12
    assert shuffled["fd_vgg16"] < 1e-12 and shuffled["fvd_vgg16"] > 1e-4
    held_out, train = (
        np.asarray(cells(None, to_float(clips.reshape(-1, 32, 32, 1))))
        for clips in (real.held_out, real.train)
    )
    floor = metrics.frechet_distance(train, held_out)
    assert equal["fd_vgg16_train"] == pytest.approx(floor, rel=1e-4)
    assert "fvd" not in equal

    def of_clips(clips):
        parts = clips, np.diff(clips, axis=1) / 2
        found = [np.asarray(cells(None, x.reshape(-1, 32, 32, 1))) for x in parts]
        return np.concatenate([x.reshape(6, -1, 9).mean(1) for x in found], axis=1)

    floor = metrics.frechet_distance(*(of_clips(to_float(x)) for x in (real.train, real.held_out)))
    assert equal["fvd_vgg16_train"] == pytest.approx(floor, rel=1e-3)


def test_the_video_distance_uses_weights_that_are_given(real, monkeypatch):
    monkeypatch.setattr(module, "require_lpips", lambda: None)
    monkeypatch.setattr(module, "load_vgg16", lambda: (None, {}))
    monkeypatch.setattr(module, "vgg16_features", cells)
    monkeypatch.setattr(module, "_frame_features", module._frame_features.__wrapped__)
    monkeypatch.setattr(module.i3d, "load", lambda path: (None, {"factor": float(path)}))
    traced = []

    def moments(variables, x):
        traced.append(x.shape)
        return variables["factor"] * x.mean((2, 3, 4))

    monkeypatch.setattr(module, "i3d_features", moments)
    report = VideoDistance(context(), i3d="2.0")(StandIn(real))
    assert len(traced) == 1  # one program for held-out clips, samples and training clips
    means = functools.partial(np.mean, axis=(2, 3, 4))
    expected = metrics.frechet_distance(
        2 * means(to_float(real.train)), 2 * means(to_float(real.held_out))
    )
    assert report["fvd"] < 1e-10 and report["fvd_train"] == pytest.approx(expected, rel=1e-4)
    short = dataclasses.replace(data(), image_shape=(8, 32, 32, 1))
    with pytest.raises(ValueError, match="9 or more frames; clips have 8: leave i3d out"):
        VideoDistance(dataclasses.replace(context(), data=short), i3d="2.0")


def test_the_protocol_names_the_networks_and_their_weights(monkeypatch):
    monkeypatch.setattr(module, "require_lpips", lambda: None)
    given = FeatureProtocol("VGG16, means of its last maps", "0f3a")
    monkeypatch.setattr(module, "vgg16_protocol", lambda: {"vgg16": given})
    monkeypatch.setattr(module.i3d, "load", lambda path: (None, {"factor": float(path)}))
    parts = "frames and halved differences of frames"
    expected = {"vgg16": FeatureProtocol(f"{given.network}, of {parts}", "0f3a")}
    assert VideoDistance(context()).features() == expected
    two, three = (VideoDistance(context(), i3d=path).features()["i3d"] for path in ("2.0", "3.0"))
    assert two.resizing == "bilinear between centres of pixels, to 224×224"
    assert two.antialiasing is False
    assert two.parameters_sha256 == parameters_digest({"factor": 2.0}) != three.parameters_sha256


@pytest.mark.parametrize("evaluator", [VideoDistance, Motion, MovingDigits])
def test_pictures_are_refused(evaluator):
    pictures = Data("digits", "train", "test", None, (8, 8, 1))
    with pytest.raises(ValueError, match=f"has {evaluator.__name__}, which measures videos"):
        evaluator(Context(pictures, None, SimpleNamespace(num_classes=0), 10))


def test_the_tracker_is_for_clips_of_moving_digits_alone():
    others = Data("animated_emoji/32", "train", "test", None, (17, 32, 32, 3), "video")
    with pytest.raises(ValueError, match="takes clips of 17 square grey frames of more than 16"):
        MovingDigits(Context(others, None, SimpleNamespace(num_classes=0), 10))
