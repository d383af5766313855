"""Measures of videos: Fréchet distances, motion, and how moving digits follow captions."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from experiments.evaluation.autoencoders import vgg16_protocol
from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.images import draw
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.tracking import Track, check_clips, follows, track
from experiments.inputs.datasets import Data, labels_of
from genjax import metrics
from genjax.data import to_float
from genjax.data.sets.moving_digits import NUM_FRAMES, optical_flow
from genjax.models.encoders.i3d import LEAST_FRAMES, i3d_features
from genjax.models.encoders.i3d import SIDE as I3D_SIDE
from genjax.models.encoders.vgg16 import vgg16_features
from genjax.pretrained import i3d
from genjax.pretrained.lpips import load_vgg16, require_lpips
from genjax.pretrained.variables import parameters_digest

Videos = UInt8[np.ndarray, "videos time height width channels"]
BATCH = 8  # videos whose features are computed at once


class RealVideos:
    """Held-out clips in a fixed random order, and as many training clips.

    Attributes:
        held_out, train: bytes.
        captions: the first caption of each held-out clip; None for a set without captions.
    """

    def __init__(self, data: Data, count: int):
        held_out, train = data.held_out(), data.train()
        count = min(count, len(held_out.source), len(train.source))
        rows, others = (draw(len(dataset.source), count) for dataset in (held_out, train))
        self.held_out = held_out.source[rows][data.feature]
        self.train = train.source[others][data.feature]
        self.captions = held_out.captions and tuple(held_out.captions[i][0] for i in rows)


real_videos = functools.lru_cache(maxsize=2)(RealVideos)  # read once for each data set


def sample_videos(context: Context, model: Model) -> Videos:
    """Return as many samples as there are real clips to compare with.

    A network that takes prompts gets the captions of `real_videos`, in their order. For clips with
    sound, the videos alone are returned.

    Raises:
        ValueError: samples have fewer frames than the clips.
    """
    real = real_videos(context.data, context.num_samples)
    count = len(real.held_out)
    if hasattr(context.condition, "prompts"):
        samples = model.sample(np.arange(count), real.captions)
    else:
        labels = context.draw_labels(lambda: labels_of(context.data.train().source[:]))
        samples = model.sample(labels[:count])
    videos = samples["video"] if isinstance(samples, dict) else samples
    frames, least = videos.shape[1], real.held_out.shape[1]
    if frames < least:
        raise ValueError(
            f"samples of {frames} frames are measured beside clips of {least}: make them as long "
            "by config.sampling.frames (--frames)"
        )
    return videos


def first_frames(context: Context, model: Model) -> Videos:
    """Return the first frames of `sample_videos`, as many as the clips have.

    Means over the frames of a longer sample vary less, so longer samples differ from all clips.
    """
    real = real_videos(context.data, context.num_samples)
    return sample_videos(context, model)[:, : real.held_out.shape[1]]


def frechet_distances(
    context: Context, model: Model, samples: np.ndarray, features: Callable
) -> dict[str, Any]:
    """Return the report of samples and of training clips, by their distances to held-out clips.

    Args:
        features: of clips, by the name of their distance.
    """
    real = real_videos(context.data, context.num_samples)
    held_out, report = features(real.held_out), {}
    for suffix, clips in {"": samples, "_train": real.train}.items():
        for name, values in features(clips).items():
            report[name + suffix] = metrics.frechet_distance(values, held_out[name])
    drawn = drawn_classes(context)
    return report | {"num_samples": len(real.held_out), **drawn, **model.how}


def drawn_classes(context: Context) -> dict[str, str]:
    """Return how `sample_videos` draws classes, for a report; nothing of networks of prompts."""
    return {} if hasattr(context.condition, "prompts") else {"labels": context.labels}


@jax.jit
def _frame_features(
    variables: Any, videos: UInt8[Array, "batch time height width channels"]
) -> tuple[Float[Array, "batch time 512"], Float[Array, "batch time-1 512"]]:
    """Return VGG16's features of frames, and of half the differences of consecutive frames."""
    videos = to_float(videos)
    both = jnp.concatenate([videos, (videos[:, 1:] - videos[:, :-1]) / 2], axis=1)
    features = vgg16_features(variables, both.reshape(-1, *both.shape[2:]))
    features = features.reshape(*both.shape[:2], -1)
    return features[:, : videos.shape[1]], features[:, videos.shape[1] :]


@jax.jit
def _i3d_features(
    variables: Any, videos: UInt8[Array, "batch time height width channels"]
) -> Float[Array, "batch classes"]:
    """Return I3D's features of clips."""
    return i3d_features(variables, to_float(videos))


@dataclass(frozen=True)
class VideoDistance:
    """Measure Fréchet distances of samples and of training clips to held-out clips.

    `fd_vgg16` compares VGG16's features of single frames. `fvd_vgg16` compares clips: the mean of
    VGG16's features over a clip's frames, beside their mean over the halved differences of
    consecutive frames. It is a substitute for the Fréchet video distance, and not comparable with
    it. `fvd` is the Fréchet video distance itself, and needs weights. `…_train` is the same
    distance of as many training clips. Samples longer than the clips are cut to their length.

    Attributes:
        i3d: weights of I3D; None leaves `fvd` out. `genjax.pretrained.i3d.load` says which weights
            published distances are of.
    """

    context: Context
    i3d: str | None = None
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2  # of a covariance

    def __post_init__(self):
        """Check data and weights before any training.

        Raises:
            ValueError, FileNotFoundError: the data are no videos; with weights of I3D, clips are
                too short for it; or as of `i3d.load`.
            ImportError: as of `require_lpips`.
        """
        self.context.check_feature("VideoDistance", "video", "videos")
        require_lpips()
        if self.i3d:
            i3d.load(self.i3d)
            if (frames := self.context.data.image_shape[0]) < LEAST_FRAMES:
                raise ValueError(
                    f"config.evaluation.measures has VideoDistance with i3d, which takes "
                    f"{LEAST_FRAMES} or more frames; clips have {frames}: leave i3d out"
                )

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        vgg16 = vgg16_protocol()["vgg16"]
        parts = "frames and halved differences of frames"
        protocols = {"vgg16": replace(vgg16, network=f"{vgg16.network}, of {parts}")}
        if self.i3d:
            resizing = f"bilinear between centres of pixels, to {I3D_SIDE}×{I3D_SIDE}"
            digest = parameters_digest(i3d.load(self.i3d)[1])
            described = "I3D, logits averaged over time", digest
            protocols["i3d"] = FeatureProtocol(*described, resizing=resizing, antialiasing=False)
        return protocols

    def __call__(self, model: Model) -> dict[str, Any]:
        samples = first_frames(self.context, model)
        return frechet_distances(self.context, model, samples, self._features)

    def _features(self, videos: Videos) -> dict[str, Float[np.ndarray, "examples features"]]:
        """Return features by the name of their distance."""
        _, variables = load_vgg16()
        frames, changes = in_batches(lambda x: _frame_features(variables, x), videos, size=BATCH)
        features = {
            "fd_vgg16": frames.reshape(-1, frames.shape[-1]),
            "fvd_vgg16": np.concatenate([frames.mean(1), changes.mean(1)], axis=1),
        }
        if self.i3d:
            _, variables = i3d.load(self.i3d)
            features["fvd"] = in_batches(lambda x: _i3d_features(variables, x), videos, size=BATCH)
        return features


@dataclass(frozen=True)
class Motion:
    """Measure how much frames change, and test whether samples change as real clips do.

    `motion` is the mean absolute difference of consecutive frames, in grey levels of 255, and
    `motion_real` that of held-out clips. `motion_distance` is the Kolmogorov–Smirnov distance of
    its distributions over clips, and `motion_p_value` is the p-value of the test. The test finds
    distances of `motion_detectable` with a probability of 0.9 or more. Samples longer than the
    clips are cut to their length.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2

    def __post_init__(self):
        self.context.check_feature("Motion", "video", "videos")

    def __call__(self, model: Model) -> dict[str, Any]:
        real = real_videos(self.context.data, self.context.num_samples).held_out
        samples, held_out = (
            metrics.frame_differences(videos).mean(1)
            for videos in (first_frames(self.context, model), real)
        )
        return {
            "motion": float(samples.mean()),
            "motion_real": float(held_out.mean()),
            **_tested("motion", samples, held_out),
            "num_samples": len(samples),
            **drawn_classes(self.context),
            **model.how,
        }


def _tested(name: str, values: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Return the two-sample test of a quantity, with keys that start with its name."""
    test = metrics.kolmogorov_smirnov(values, real)
    return {f"{name}_{key}": value for key, value in test._asdict().items()}


@dataclass(frozen=True)
class MovingDigits:
    """Measure whether clips of moving digits follow their captions and move as the data do.

    `experiments.evaluation.tracking` finds digits and movements from the pixels alone.
    `caption_accuracy` is the share of clips in which all digits and all their directions in the
    first frames are right. `digits_accuracy` and `directions_accuracy` count one of the two.
    `whole` is the share of clips whose digits no frame loses. `warping_error` is the root mean
    square change of pixels along the exact flow of the movements found, averaged over clips, in
    units of the whole grey scale. `speed_distance` is the Kolmogorov–Smirnov distance of the
    distributions of speeds, and `speed_p_value` is the p-value of the test. The test finds
    distances of `speed_detectable` with a probability of 0.9 or more. `frames_in_range` is the
    share of frames whose mean grey level, and whose standard deviation of grey levels, lie within
    those of all held-out frames.

    Samples that are rolled out are longer than the data's clips. Their first frames are measured,
    and then their last ones as `…_late`. Walls reflect a digit before its last frames, so there a
    direction is right up to reflections.

    `…_real` is the same measure of as many held-out clips, by the same tracker.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2

    def __post_init__(self):
        self.context.check_feature("MovingDigits", "video", "videos")
        check_clips(self.context.data.image_shape, "MovingDigits")

    def __call__(self, model: Model) -> dict[str, Any]:
        data, count = self.context.data, self.context.num_samples
        real, found_real = real_videos(data, count), _real_tracks(data, count)
        samples = sample_videos(self.context, model)
        asked = real.captions if hasattr(self.context.condition, "prompts") else None
        parts = {"": samples[:, :NUM_FRAMES]}
        if samples.shape[1] > NUM_FRAMES:
            parts["_late"] = samples[:, -NUM_FRAMES:]
        report = {}
        for part, videos in parts.items():
            found, late = [track(video) for video in videos], bool(part)
            measured = _describe(videos, found, asked, reflected=late)
            compared = _describe(real.held_out, found_real, real.captions, reflected=late)
            report |= {
                **{f"{name}{part}": value for name, value in measured.items()},
                **{f"{name}{part}_real": compared[name] for name in measured},
                **_tested(f"speed{part}", _speeds(found), _speeds(found_real)),
                f"frames_in_range{part}": _in_range(videos, real.held_out),
            }
        drawn = drawn_classes(self.context)
        return report | {"num_samples": len(samples), **drawn, **model.how}


@functools.lru_cache(maxsize=2)
def _real_tracks(data: Data, count: int) -> list[list[Track]]:
    return [track(video) for video in real_videos(data, count).held_out]


def _in_range(videos: Videos, real: Videos) -> float:
    """Return the share of frames whose grey levels have moments in the range of real frames'."""
    moments = lambda clips: np.stack([clips.mean((2, 3, 4)), clips.std((2, 3, 4))])
    given, known = moments(videos), moments(real)
    least, most = (bound(known, axis=(1, 2), keepdims=True) for bound in (np.min, np.max))
    return float(((least <= given) & (given <= most)).all(0).mean())


def _describe(
    videos: Videos,
    found: Sequence[Sequence[Track]],
    captions: Sequence[str] | None,
    *,
    reflected: bool,
) -> dict[str, float]:
    """Return the measures of clips and of what the tracker found in them.

    Args:
        reflected: as of `follows`.
    """
    grey = lambda tracks: [np.rint(each.picture * 255).astype(np.uint8) for each in tracks]
    flows = [optical_flow([each.movement for each in tracks], grey(tracks)) for tracks in found]
    errors = metrics.warping_error(videos / 255, *map(np.stack, zip(*flows, strict=True)))
    report = {
        "whole": float(np.mean([all(each.is_whole for each in tracks) for tracks in found])),
        "warping_error": float(np.nanmean(errors)),
        "speed": float(_speeds(found).mean()),
    }
    if captions:
        right = [
            follows(tracks, text, reflected=reflected)
            for tracks, text in zip(found, captions, strict=True)
        ]
        names = {"caption": "both", "digits": "digits", "directions": "directions"}
        for name, key in names.items():
            report[f"{name}_accuracy"] = float(np.mean([each[key] for each in right]))
    return report


def _speeds(found: Sequence[Sequence[Track]]) -> np.ndarray:
    """Return the speeds of all digits of all clips, in pixels a frame."""
    return np.array([each.movement.speed for tracks in found for each in tracks])
