"""Clips with sound: a space of both, and prompts that also stand for clips with their sound."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Num, PyTree
from PIL import Image

from experiments.configuration import kinds
from experiments.inputs.clips import CaptionedClips
from genjax.data import to_uint8
from genjax.training.pictures import image_grid
from genjax.training.task import Space
from genjax.training.workdir import Config

FEATURES = {"video": "video", "sound": "audio"}  # of a batch, by modality
Clips = dict[str, Num[Array | np.ndarray, "clips ..."]]  # by "video" and "sound"


def of_features(examples: dict[str, Array]) -> Clips:
    """Return the modalities of examples of a data set."""
    return {name: examples[feature] for name, feature in FEATURES.items()}


@dataclass(frozen=True)
class SoundAndVideo:
    """Clips with their sound, a tree `{"video": …, "sound": …}`, each in a space of its own.

    If the video's space has a `directory`, its latents are read from there.

    Attributes:
        sound_scale: what the network sees of a sound is the sound times this. Sounds are mostly
            quiet, and noise would drown them at almost every time. A power of two rounds nothing.
    """

    video: Space
    sound: Space
    sound_scale: float = 1.0
    feature: ClassVar[str] = "video"
    config_fields = dict(data=dict(sound_shape=tuple | None))

    @classmethod
    def from_data(
        cls, data: Any, *, video: dict[str, Any], sound: dict[str, Any], sound_scale: float = 1.0
    ) -> "SoundAndVideo":
        """Return the space of a data set of clips with sound.

        Args:
            data: the record of the data set, whose `sound_shape` is that of a clip's sound.
            video, sound: the fields of their spaces, the name as `space`.

        Raises:
            ValueError: as of these spaces.
        """

        def bind(name: str, fields: dict[str, Any], **own: Any) -> Space:
            fields = {"name": fields["space"]} | dict(fields)
            del fields["space"]
            given = dict(data=Config(dict(data) | own), config_field=f"space.{name}")
            return kinds.SPACE.bind(fields, given["config_field"], **given)

        video = bind("video", video)
        if getattr(video, "directory", None):
            video = replace(video, feature=FEATURES["video"])
        sound = bind("sound", sound, feature="audio", image_shape=data.sound_shape, flip=False)
        return cls(video, sound, sound_scale)

    @property
    def parts(self) -> dict[str, Space]:
        return {"video": self.video, "sound": self.sound}

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(space.shape) for name, space in self.parts.items()}

    @property
    def autoencoder(self) -> Any:
        return self.video.autoencoder or self.sound.autoencoder

    @property
    def directory(self) -> str | None:
        """The folder of the video's latents, which `experiments.encode` writes."""
        return getattr(self.video, "directory", None)

    def made_by(self) -> PyTree:
        return self.video.made_by()

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.video.abstract_batch() | self.sound.abstract_batch()

    def frozen(self) -> dict[str, PyTree]:
        return _of_those_with_any(self.parts, lambda space: space.frozen())

    def abstract_frozen(self) -> dict[str, PyTree]:
        return _of_those_with_any(self.parts, lambda space: space.abstract_frozen())

    def encode(self, clips: Clips, frozen: PyTree = None) -> Clips:
        encoded = {
            name: space.encode(clips[name], (frozen or {}).get(name))
            for name, space in self.parts.items()
        }
        return encoded | {"sound": self.sound_scale * encoded["sound"]}

    def decode(self, samples: Clips, frozen: PyTree = None) -> Clips:
        samples = samples | {"sound": samples["sound"] / self.sound_scale}
        return {
            name: space.decode(samples[name], (frozen or {}).get(name))
            for name, space in self.parts.items()
        }

    def to_data(self, decoded: Clips) -> Clips:
        return {name: space.to_data(decoded[name]) for name, space in self.parts.items()}

    @staticmethod
    def picture(clips: Clips, columns: int) -> Image.Image:
        """Draw each clip as a strip of its frames, and its sound below.

        Latents are drawn by their first channel, up to four deviations.
        """
        video, sound = clips["video"], clips["sound"]
        if video.dtype != np.uint8:
            video, sound = to_uint8(video[..., :1] / 4), sound[..., :1] / 4 * 2**15
        strips = rearrange(np.asarray(video), "n t h w c -> n h (t w) c")
        curves = _envelopes(sound, max(strips.shape[1] // 2, 2), strips.shape[2])
        curves = np.repeat(curves[..., None], strips.shape[-1], axis=-1)
        return image_grid(np.concatenate([strips, curves], axis=1), 1)


def _of_those_with_any(
    parts: dict[str, Space], load: Callable[[Space], dict[str, PyTree]]
) -> dict[str, dict[str, PyTree]]:
    loaded = {name: load(space) for name, space in parts.items()}
    return {name: each for name, each in loaded.items() if each}


def _envelopes(
    sounds: Num[np.ndarray, "clips samples channels"], height: int, width: int
) -> np.ndarray:
    """Return a grey picture of each sound: from silence to the extreme samples of each column."""
    columns = np.array_split(sounds / 2**15, width, axis=1)
    low, high = (
        np.stack([extreme(each, axis=(1, 2), initial=0) for each in columns], -1)[:, None]
        for extreme in (np.min, np.max)
    )
    levels, half = np.linspace(1, -1, height)[:, None], 1 / (height - 1)
    return (255 * ((levels <= high + half) & (levels >= low - half))).astype(np.uint8)


@dataclass(frozen=True)
class SoundingClips(CaptionedClips):
    """Prompts whose labels also stand for held-out clips with their sound."""

    def _own_clips(self) -> Clips:
        return of_features(self.data.held_out().source[self.own_rows()])

    def abstract_frozen(self) -> dict[str, PyTree]:
        rows = lambda shape, dtype: jax.ShapeDtypeStruct((self.num_rows, *shape), dtype)
        video, sound = self.data.image_shape, self.data.sound_shape
        clips = dict(video=rows(video, jnp.uint8), sound=rows(sound, jnp.int16))
        return super().abstract_frozen() | {"clips": clips}
