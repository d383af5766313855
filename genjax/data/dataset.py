"""Datasets: examples, in memory or on disk, and their description."""

import dataclasses
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

PRELOAD_BYTES = 2**29  # limit for decoded examples; MNIST takes 47 MB, CIFAR-10 154 MB
# The first of these features that a set has gives it its `image_shape`.
PICTURES = ("image", "video", "audio")


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Examples as stacked arrays: a batch is one NumPy gather.

    Attributes:
        arrays: by feature name; the first axis of each runs over the examples.
    """

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int | slice | np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Examples that are read and decoded on access.

    Attributes:
        records: `records[i]` is a dict of the features of one example, and `len(records)` the
            number of examples. A tensorflow-datasets data source and a list of dicts both fit.
        dtypes: by name, the features to read.
    """

    records: Any
    dtypes: Mapping[str, np.dtype]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | slice | np.ndarray) -> dict[str, np.ndarray]:
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        if np.ndim(index):
            return stack([self[i] for i in index.tolist()])
        record = self.records[index]
        return {name: np.asarray(record[name], dtype) for name, dtype in self.dtypes.items()}


def stack(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack examples to one batch `[batch ...]` of each feature.

    Raises:
        ValueError: the examples differ in shape.
    """
    for name in examples[0]:
        shapes = sorted({np.shape(example[name]) for example in examples})
        if len(shapes) > 1:
            raise ValueError(
                f"examples of one batch have {name!r} of shapes {shapes[0]} and {shapes[-1]}: give "
                "a transform that makes them equal, such as center_crop after resize"
            )
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def preload(source: OnDisk, shapes: Mapping[str, tuple[int, ...]]) -> InMemory:
    """Read all examples into memory, in threads.

    Args:
        shapes: by name, the shape of each feature of one example.
    """
    arrays = {
        key: np.empty((len(source), *shape), source.dtypes[key]) for key, shape in shapes.items()
    }

    def read(index: int) -> None:
        for key, value in source[index].items():
            arrays[key][index] = value

    with ThreadPoolExecutor(num_threads()) as pool:
        for _ in pool.map(read, range(len(source))):
            pass
    return InMemory(arrays)


def num_threads() -> int:
    """Return how many threads read and decode files: one per core, at most 16."""
    return min(16, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a dataset, or your own arrays.

    Your own arrays need one line: `Dataset("mine", "train", InMemory({"image": images}))`.

    Attributes:
        name: as given to `load_dataset`.
        split: as given to `load_dataset`.
        source: the examples. `len(source)` is their number, `source[i]` is one example as a dict of
            arrays, and `source[slice or array of ints]` is a batch. Features are numeric and have
            their tensorflow-datasets names. Most sets have `image` (uint8, [height width channels])
            or `video` (uint8, [time height width channels]), and `label` (int32). Sound is `audio`
            (int16, [samples channels]), alone or beside a `video`.
        image_shape: (height, width, channels), with None where sizes vary; (time, height, width,
            channels); or (samples, channels) of a set of sound alone. None for a set without
            pictures. The default for arrays in memory is the shape of the first of `PICTURES`.
        num_classes: None for a set without class labels.
        class_names: by label.
        captions: for each example a tuple of texts: the name first, then synonyms. Batches of a
            captioned set have an `index`, which finds the captions: `captions[index]`.
        skipped: by path, why a file could not be read and is left out.
        conversions: by kind, how many images were converted when they were read.

    Raises:
        ValueError: the source is a dictionary; the numbers of captions and examples differ, or an
            example's captions are no tuple of one text or more. Of arrays in memory also: their
            lengths differ, or labels are not `[examples]` whole numbers from 0 to `num_classes` −
            1.
    """

    name: str
    split: str
    source: InMemory | OnDisk
    image_shape: tuple[int | None, ...] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    captions: Sequence[Sequence[str]] | None = None
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    conversions: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.source, Mapping):  # whose length is the number of features
            raise ValueError(f"the source of {self.name} is a dictionary: give InMemory(arrays)")
        if isinstance(self.source, InMemory):
            self._check_arrays(self.source.arrays)
        if self.image_shape is None and isinstance(self.source, InMemory):
            if pictures := [name for name in PICTURES if name in self.source.arrays]:
                shape = self.source.arrays[pictures[0]].shape[1:]
                object.__setattr__(self, "image_shape", shape)
        if self.captions is not None:
            self._check_captions(self.captions)

    def _check_captions(self, captions: Sequence[Sequence[str]]) -> None:
        """Raise ValueError unless each example has its tuple of texts.

        The first element of a bare text would be its first letter.
        """
        title = f"{self.name} ({self.split})"
        if len(captions) != len(self.source):
            raise ValueError(
                f"{len(captions)} captions for the {len(self.source)} examples of {title}: "
                "give a tuple of texts for each"
            )
        for number, texts in enumerate(captions):
            if isinstance(texts, str) or not len(texts):
                raise ValueError(
                    f"captions of example {number} of {title} are {texts!r}: give a tuple of one "
                    "text or more"
                )

    def _check_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError if arrays differ in length, or labels name no class."""
        title, lengths = f"{self.name} ({self.split})", {n: len(a) for n, a in arrays.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} of {name!r}" for name, count in lengths.items())
            raise ValueError(f"arrays of {title} differ in length: {counts}")
        labels = arrays.get("label")
        if self.num_classes is None or labels is None or not len(labels):
            return
        if labels.ndim != 1:
            raise ValueError(
                f"labels of {title} have shape {labels.shape}: give one number for each example, "
                "such as labels.reshape(-1) of a column"
            )
        low, high, whole = labels.min(), labels.max(), np.issubdtype(labels.dtype, np.integer)
        if low < 0 or high >= self.num_classes or not whole:
            raise ValueError(
                f"labels of {title} are {labels.dtype} from {low} to {high}, and num_classes is "
                f"{self.num_classes}: they must be whole numbers from 0 to {self.num_classes - 1}"
            )


def select(feature: str, dataset: Dataset) -> Dataset:
    """Return a set of clips with sound with one of the two: its `video` or its `audio`.

    A set that has only one of `PICTURES`, or has no such feature, is returned as it is.
    """
    source = dataset.source
    features = source.arrays if isinstance(source, InMemory) else source.dtypes
    others = {name for name in PICTURES if name in features} - {feature}
    if feature not in features or not others:
        return dataset
    kept = {name: value for name, value in features.items() if name not in others}
    source = InMemory(kept) if isinstance(source, InMemory) else OnDisk(source.records, kept)
    first = next(name for name in PICTURES if name in features)  # whose shape the set has
    shape = dataset.image_shape if feature == first else source[0][feature].shape
    return dataclasses.replace(dataset, source=source, image_shape=shape)


def take(split: str, members: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """Return the parts that a split names, in the split language of tensorflow-datasets.

    tensorflow-datasets itself is not needed.

    Args:
        split: names joined by `+`, for example `train[:80%]+test[-100:]`. A name stands for all its
            examples or for a slice, in examples or in percent (rounded to the nearest example).
        members: by name, a function that returns the examples: anything with a length and slices.

    Raises:
        ValueError: the split has an unknown name or form, its slice exceeds the examples, or it is
            empty.
    """
    parts, count = [], 0
    for term in split.split("+"):
        bound = r"(-?\d+(?:(?:\.\d+)?%)?)?"
        match = re.fullmatch(rf"\s*([\w-]+)(?:\[{bound}:{bound}\])?\s*", term)
        if not match or match[1] not in members:
            raise ValueError(
                f"Unknown split {split!r}: expected one of {sorted(members)}, a slice in examples "
                "or percent such as 'train[:80%]', or a sum such as 'train[:100]+test'"
            )
        examples = members[match[1]]()
        start, stop = (_position(text, len(examples), term) for text in match.groups()[1:])
        parts.append(examples[start:stop])
        count += len(range(len(examples))[start:stop])
    if not count:
        raise ValueError(f"split {split!r} holds no example: take another, or a larger slice")
    return parts


def _position(bound: str | None, length: int, term: str) -> int | None:
    if bound is None:
        return None
    position = round(float(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
    if bound.startswith("-") and position == 0:
        return length  # a small percentage counts from the end, as all others do
    if abs(position) > length:
        raise ValueError(
            f"split {term!r} of {length} examples: {bound} lies beyond them, take a smaller slice"
        )
    return position


def held_out(names: Sequence[str], labels: Sequence[Any], one_in: int) -> np.ndarray:
    """Return which examples form the test split: bool, [examples].

    Each class gives one example in `one_in` (rounded): those whose names have the lowest SHA-256.
    So an example's split depends on no random generator and no order, and hardly on the other
    examples.
    """
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    classes = defaultdict(list)
    for index, label in enumerate(labels):
        classes[label].append(index)
    held = np.zeros(len(names), bool)
    for indices in classes.values():
        held[sorted(indices, key=digests.__getitem__)[: round(len(indices) / one_in)]] = True
    return held
