"""The data of a config: its splits, and the batches to train on."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.configuration import kinds
from genjax.data import (
    Batches,
    BucketedBatches,
    BucketedClips,
    Dataset,
    PackedClips,
    aspect_buckets,
    clip_sizes,
    cut_to,
    load_dataset,
    nearest_clip_buckets,
    resized_to,
    squared,
)
from genjax.data.dataset import OnDisk, select
from genjax.data.sets.latents import check_parameters, read_summary
from genjax.devices import process_rows
from genjax.devices.mesh import batch_sharding
from genjax.pretrained.variables import parameters_digest
from genjax.training.task import GenerativeTask

# Examples are not mirrored if a larger share of their captions names a side. 2.4 % of the emoji do,
# such as arrows, and 84 % of the clips of moving digits.
MAX_SIDED = 0.1


@dataclass(frozen=True)
class Data:
    """A data set as a config describes it.

    Attributes:
        image_shape: of every example, whatever its stored size where `resize` or `buckets` are set;
            (samples, channels) of sound.
        feature: "image", "video" or "audio". With "audio", clips with sound become sound alone.
        buckets: arguments of `aspect_buckets` beside the area, which is that of `image_shape`, as
            pairs; None for batches of one size. Those of video also have `frames`, the lengths.
        options: further arguments of `load_dataset`, as pairs.
        sound_shape: (samples, channels) of the sound of clips with sound; None for other data.
    """

    name: str
    train_split: str
    held_out_split: str
    directory: str | None
    image_shape: tuple[int, ...]
    feature: str = "image"
    resize: bool = False
    buckets: tuple[tuple[str, Any], ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    sound_shape: tuple[int, int] | None = None

    @classmethod
    def from_config(cls, config: Any) -> "Data":
        data = config.data
        # A run's record has lists in place of tuples, which cannot be hashed.
        hashable = lambda value: tuple(value) if isinstance(value, list) else value
        pairs = lambda fields: tuple(sorted((n, hashable(v)) for n, v in (fields or {}).items()))
        return cls(
            **{name: data[name] for name in ("name", "train_split", "held_out_split", "directory")},
            image_shape=tuple(data.image_shape),
            feature=data.get("feature", "image"),
            resize=bool(data.get("resize")),
            buckets=pairs(data.get("buckets")) or None,
            options=pairs(data.get("options")),
            sound_shape=hashable(data.get("sound_shape")),
        )

    def stored(self, split: str) -> Dataset:
        """Load one split, with examples as they are stored."""
        dataset = load_dataset(self.name, split, self.directory, **dict(self.options))
        return select("audio", dataset) if self.feature == "audio" else dataset

    def load(self, split: str) -> Dataset:
        """Load one split, with examples of `image_shape` where `resize` or `buckets` are set.

        Raises:
            ValueError: clips or sounds are to be resized as images are.
        """
        if self.resize and self.feature != "image":
            raise ValueError(
                f"config.data.resize is for images, and config.data.feature is {self.feature!r}: "
                "set config.data.options, arguments of the data set's loader, such as size"
            )
        dataset = self.stored(split)
        if self.feature == "video" and self.buckets:
            return cut_to(self.image_shape[:3], dataset)
        size = self.image_shape[:2]
        if self.resize and size[0] == size[1]:
            return squared(size[0], dataset)
        return resized_to(size, dataset) if self.resize or self.buckets else dataset

    def train(self) -> Dataset:
        return self.load(self.train_split)

    def held_out(self) -> Dataset:
        return self._held_out

    @functools.cached_property
    def _held_out(self) -> Dataset:
        return self.load(self.held_out_split)

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """The first hundred held-out examples, of which pictures are made."""
        return self.held_out().source[:100][self.feature]


def condition_of(config: Any) -> Any:
    """Return the condition of a config on its data."""
    return kinds.CONDITION.bind(config.condition, "condition", data=Data.from_config(config))


def labels_of(examples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the labels of examples, `[examples]`; they are 0 if the data have none."""
    count = len(next(iter(examples.values())))
    return examples.get("label", np.zeros(count, np.int32))


def abstract_batch(
    config: Any, task: GenerativeTask, mesh: Mesh | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and types of a training batch, without its data; on a mesh, with shardings."""
    sharding = batch_sharding(mesh) if mesh else None
    label = {"label": jax.ShapeDtypeStruct((), jnp.int32)}
    entries = label | task.space.abstract_batch() | task.condition.abstract_batch()
    if layout := getattr(task, "packing", None):
        entries = layout.abstract(entries, task.space.feature)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *a.shape), a.dtype, sharding=sharding)
        for name, a in entries.items()
    }


def training_batches(config: Any, task: GenerativeTask, mesh: Mesh) -> Batches:
    """Return this process' rows of the batches that a config is trained on.

    With `config.data.buckets` images may vary in size, and the images of a batch share their
    proportions. The clips of a batch also share their length. A task with a `packing` gets rows of
    clips of all sizes instead.

    Raises:
        ValueError: as of `Batches`, `BucketedBatches` and `PackedClips`; or the examples, or their
            sounds, have another shape than the task's, or another number of classes than
            `config.condition`; or latents or codes are another autoencoder's, or pairs another
            teacher's; or images are no bytes; or as of `check_mirrored`.
    """
    data = Data.from_config(config)
    latents = getattr(task.space, "directory", None)
    if latents:
        dataset = load_dataset("latents", data.train_split, latents)
        if data.sound_shape:
            dataset = _with_sound(dataset, data.train(), config.data.flip)
        _check_vocabulary(latents, task.space)
        check_parameters(latents, lambda: parameters_digest(task.space.made_by()))
    elif data.buckets:
        dataset = data.stored(data.train_split)
    else:
        dataset = data.train()
    bucketed = data.buckets and not latents
    expected = task.space.abstract_batch()[task.space.feature].shape
    if not bucketed:
        _check_shape(dataset, expected, data, resizable="resize" in config.data and not latents)
    if not latents:
        _check_entries(dataset, task.space)
    _check_classes(dataset, task.condition)
    check_mirrored(dataset, task.condition, config.data.flip)
    options = dict(
        transform=task.condition.transform(dataset), rows=process_rows(mesh, config.batch_size)
    )
    kind, buckets = _buckets(data) if bucketed else (Batches, None)
    if layout := getattr(task, "packing", None):
        sizes = np.tile(expected[:3], (len(dataset.source), 1))
        if bucketed:
            sizes = np.array(buckets)[nearest_clip_buckets(clip_sizes(dataset), buckets)]
        options |= dict(layout=layout, sizes=sizes, feature=task.space.feature)
        return PackedClips(dataset, config.batch_size, config.seed, **options)
    if bucketed:
        return kind(dataset, config.batch_size, config.seed, buckets=buckets, **options)
    return Batches(dataset, config.batch_size, config.seed, image_shape=expected, **options)


@dataclass(frozen=True)
class _LatentsOfClips:
    """Records of clips, with latents as their `video`. Mirror images follow all originals."""

    latents: Any
    clips: Any

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        clip = self.clips[index % len(self.clips)]
        return clip | {"video": self.latents[index]["image"]}


def _with_sound(latents: Dataset, clips: Dataset, flip: bool) -> Dataset:
    """Return latents of clips as their `video`, with what else the clips have, as `audio`.

    Args:
        flip: whether the clips' mirror images were encoded, too.

    Raises:
        ValueError: there are latents of another number of clips.
    """
    source, count = clips.source, len(clips.source) * (2 if flip else 1)
    if len(latents.source) != count:
        raise ValueError(
            f"config.space.video.directory has {len(latents.source):,} latents of {clips.split}, "
            f"and config.data makes {count:,}: encode into an empty folder, or put back the data"
        )
    dtypes = {n: a.dtype for n, a in source[0].items()} | {"video": np.dtype(np.float32)}
    source = OnDisk(_LatentsOfClips(latents.source, source), dtypes)
    return dataclasses.replace(latents, source=source)


def _buckets(data: Data) -> tuple[type[BucketedBatches], tuple]:
    """Return the class of the batches and the buckets of `config.data.buckets`."""
    *frames, height, width, _ = data.image_shape
    fields = dict(data.buckets)
    lengths = fields.pop("frames", frames)
    sizes = aspect_buckets(height * width, **fields)
    if not frames:
        return BucketedBatches, sizes
    return BucketedClips, tuple((length, *size) for length in lengths for size in sizes)


def _check_shape(dataset: Dataset, expected: tuple[int, ...], data: Data, resizable: bool) -> None:
    """Raise ValueError if the examples have another shape than the task's."""
    given = dataset.image_shape
    if given == expected:
        return
    kind = {"video": "clips", "audio": "sounds"}.get(data.feature, "images")
    if given is None:
        raise ValueError(
            f"{dataset.name} ({dataset.split}) has no {data.feature!r}, which config.data.feature "
            f"names; its examples have {', '.join(dataset.source[0])}"
        )
    if kind == "images" and len(given) != len(expected) == 3:
        raise ValueError(
            f"images of {dataset.name} ({dataset.split}) have shape {given}, and must have "
            "(height, width, channels): give gray images one channel, as images[..., None]"
        )
    varies, ways = None in given, []
    if not varies and resizable:
        ways.append(
            f"set --config.data.image_shape={','.join(map(str, given))}, and the network for it"
        )
    if resizable and kind != "images":
        ways.append("set config.data.options, arguments of the data set's loader, for that shape")
    elif resizable and not data.resize:
        ways.append(
            "set --config.data.resize=True, to resize and crop images to config.data.image_shape "
            "as they are read"
        )
    if varies and kind != "sounds" and not data.sound_shape:  # buckets cut no sound
        ways.append(
            "in a config of your own set config.data.buckets = dict(multiple=64, max_ratio=2.0), "
            "to train on batches of equal proportions, if the network takes any shape"
        )
    raise ValueError(
        f"{kind} of {dataset.name} ({dataset.split}) "
        f"{'vary in size' if varies else f'have shape {given}'}, the network takes {expected}: "
        f"{'; or '.join(ways) or f'encode the {kind} again'}"
    )


def _check_vocabulary(folder: str, space: Any) -> None:
    """Raise ValueError if codes on disk have another vocabulary than the space's tokenizer.

    Folders of earlier versions do not say their vocabulary.
    """
    own = getattr(space, "vocabulary", None)
    given = read_summary(folder).get("vocabulary", own)
    if given != own:
        raise ValueError(
            f"{folder} has codes of a vocabulary of {given}, and the autoencoder of config.space "
            f"has {own}: encode the data again, or take the tokenizer that encoded them"
        )


def _check_entries(dataset: Dataset, space: Any) -> None:
    """Raise ValueError if examples lack what the space reads, or have it in another form.

    Pictures must have the integer type that the space turns into floats; `_check_shape` checks
    their shape. Sound beside them must have its shape too.
    """
    example, owner = dataset.source[0], f"{dataset.name} ({dataset.split})"
    for name, expected in space.abstract_batch().items():
        if name not in example:
            raise ValueError(
                f"examples of {owner} have {', '.join(example)} and no {name}, which config.space "
                "reads: take another data set, or options of this one that add it"
            )
        given = example[name]
        if np.issubdtype(expected.dtype, np.integer) and given.dtype != expected.dtype:
            hint = ": of x in [0, 1], give np.round(255 * x).astype(np.uint8)"
            raise ValueError(
                f"the {name} of {owner} is {given.dtype}, and it must be {expected.dtype}"
                f"{hint if expected.dtype == np.uint8 else ''}"
            )
        if name != space.feature and given.shape != expected.shape:
            raise ValueError(
                f"the {name} of {owner} has shape {given.shape}, the network takes "
                f"{expected.shape}: set --config.data.sound_shape={','.join(map(str, given.shape))}"
                ", and the network for it"
            )


def _check_classes(dataset: Dataset, condition: Any) -> None:
    """Raise ValueError if the data have another number of classes than the condition."""
    expected, there = condition.num_classes, dataset.num_classes
    if expected in (0, there or 1):
        return
    change = f"num_classes={there}" if there else "name=Unconditional"
    raise ValueError(
        f"{dataset.name} ({dataset.split}) has {there or 'no'} classes, and "
        f"config.condition.num_classes is {expected}: set --config.condition.{change}"
    )


def check_mirrored(dataset: Dataset, condition: Any, flip: bool) -> None:
    """Raise ValueError if mirrored examples would have captions that name the wrong side."""
    reads_captions = hasattr(type(condition), "texts")
    if not (flip and reads_captions and dataset.captions):
        return
    side = re.compile(r"\b(left|right)(wards?)?\b", re.IGNORECASE)
    sided = sum(bool(side.search(" ".join(each))) for each in dataset.captions)
    if sided > MAX_SIDED * len(dataset.captions):
        raise ValueError(
            f"config.data.flip is True, and {sided:,} of {len(dataset.captions):,} captions of "
            f"{dataset.name} ({dataset.split}) name left or right, which mirroring makes false: "
            "set --config.data.flip=False"
        )
