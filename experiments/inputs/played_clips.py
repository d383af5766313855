"""Played clips: the actions of a game, frame by frame, and held-out clips with their sound."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from experiments.inputs.conditions import Classes, Frames
from experiments.inputs.datasets import Data
from experiments.inputs.sound_and_video import Clips, of_features
from genjax.models.transformers.sound_and_video import WithActions
from genjax.training.task import RealExamples


@dataclass(frozen=True)
class PlayedClips:
    """The action at each frame of a played clip, or nothing. Labels stand for held-out clips.

    Held-out clips may be longer than those that the network sees, so that samples can be.

    Attributes:
        data: a data set with `video`, `audio` and `action`, whose `num_frames` is an option.
        num_actions: of the game, or 0 for a network without actions.
        frames: of the held-out clips.
        num_clips: how many held-out clips labels stand for.
        num_rows: rows of sample sheets.
    """

    data: Data
    num_actions: int
    frames: int
    num_clips: int = 64
    num_rows: int = 4
    num_classes: ClassVar[int] = 0
    transform, row_names = Classes.transform, Frames.row_names

    @property
    def is_empty(self) -> bool:
        return not self.num_actions

    @property
    def network_fields(self) -> dict[str, int | None]:
        return {"num_classes": 0, "num_actions": self.num_actions or None}

    @property
    def num_held_out_clips(self) -> int:
        return self.num_clips

    @property
    def window(self) -> int:
        """The number of frames that the network sees."""
        return self.data.image_shape[0]

    @property
    def frame_samples(self) -> int:
        """The samples of sound of a frame."""
        return self.data.sound_shape[0] // self.window

    def _condition(self, actions: Int[Array, "batch frames"]) -> PyTree:
        nothing = jnp.zeros(len(actions), int)
        return WithActions(nothing, actions) if self.num_actions else nothing

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"action": jax.ShapeDtypeStruct((self.window,), jnp.int32)}

    def example(self) -> PyTree:
        return self._condition(jnp.zeros((1, self.window), int))

    def of_batch(self, batch: dict[str, Array]) -> PyTree:
        return self._condition(batch["action"])

    def null(self, frozen: PyTree) -> PyTree:
        no_actions = jnp.full((1, self.window), self.num_actions)
        return jax.tree.map(lambda a: a[0], self._condition(no_actions))

    def of_labels(
        self, labels: Int[Array, " batch"], frozen: PyTree, first: int | Array = 0
    ) -> PyTree:
        """Return the conditions of the window of the labels' clips that begins at frame `first`."""
        return self._condition(_rows(frozen["clips"]["action"][labels], first, self.window))

    def clips(self, labels: Int[Array, " batch"], frozen: PyTree, first: int | Array = 0) -> Clips:
        """Return the window of the labels' clips that begins at frame `first`."""
        clips, samples = frozen["clips"], self.frame_samples
        sound = _rows(clips["sound"][labels], first * samples, self.data.sound_shape[0])
        return {"video": _rows(clips["video"][labels], first, self.window), "sound": sound}

    @functools.cached_property
    def held_out(self) -> dict[str, np.ndarray]:
        """The held-out clips with sound and actions, `frames` long.

        Raises:
            ValueError: there are fewer clips than `num_clips` or `num_rows`, or more actions than
                `num_actions`.
        """
        options = dict(self.data.options) | {"num_frames": self.frames}
        data = replace(self.data, options=tuple(sorted(options.items())))
        clips = data.load(self.data.held_out_split).source[: self.num_clips]
        given, least = len(clips["action"]), max(self.num_clips, self.num_rows)
        if given < least:
            raise ValueError(
                f"config.condition.num_clips is {self.num_clips} and num_rows {self.num_rows}, and "
                f"labels stand for {given} clips of {self.data.name} ({self.data.held_out_split}): "
                "set fewer rows and clips, or a larger config.data.held_out_split"
            )
        highest = int(clips["action"].max())
        if self.num_actions and highest >= self.num_actions:
            raise ValueError(
                f"config.condition.num_actions is {self.num_actions}, and {self.data.name} "
                f"({self.data.held_out_split}) has actions up to {highest}: set it to the number "
                "of the game's actions"
            )
        return of_features(clips) | {"action": clips["action"]}

    def frozen(self) -> dict[str, PyTree]:
        return {"clips": self.held_out}

    def abstract_frozen(self) -> dict[str, PyTree]:
        rows = lambda shape, dtype: jax.ShapeDtypeStruct((self.num_clips, *shape), dtype)
        sound = self.frames * self.frame_samples, *self.data.sound_shape[1:]
        video = self.frames, *self.data.image_shape[1:]
        clips = dict(video=rows(video, jnp.uint8), sound=rows(sound, jnp.int16))
        return {"clips": clips | {"action": rows((self.frames,), jnp.int32)}}

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        return RealExamples(jax.tree.map(np.asarray, self.clips(labels, self.frozen())), names)


def _rows(a: Array, first: int | Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(a, first, count, axis=1)
