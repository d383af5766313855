"""Conditions of networks: class labels, encoded prompts, frames of a clip, or nothing."""

import collections
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from experiments.configuration import kinds
from experiments.inputs.datasets import Data
from genjax.data import Dataset, to_float
from genjax.data.prompts import PromptCache, padded, with_prompts
from genjax.data.transforms import Transform
from genjax.folders import cache_folder
from genjax.models.transformers.joint_ltx2 import join_texts
from genjax.nn import Text
from genjax.pipelines import load_encoder
from genjax.training.progress import ProgressBar
from genjax.training.task import FROM_TRAINING, RealExamples

BATCH = 64  # prompts encoded at once
SEARCHED = 2000  # examples of a split at most, for pictures of real examples of each class


@dataclass(frozen=True)
class Classes:
    """The number of a class. `num_classes`, one beyond the classes, replaces a dropped class.

    With one class all examples belong to it, and the data need no labels.
    """

    num_classes: int

    @property
    def num_rows(self) -> int:
        return self.num_classes

    @property
    def network_fields(self) -> dict[str, int]:
        return {"num_classes": self.num_classes}

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def example(self) -> Int[Array, "1"]:
        return jnp.zeros(1, int)

    def of_batch(self, batch: dict[str, Array]) -> Int[Array, " batch"]:
        return jnp.zeros(_length(batch), int) if self.num_classes == 1 else batch["label"]

    def null(self, frozen: PyTree) -> int:
        return self.num_classes

    def of_labels(self, labels: Int[Array, " batch"], frozen: PyTree) -> Int[Array, " batch"]:
        return jnp.zeros_like(labels) if self.num_classes == 1 else labels

    def frozen(self) -> dict[str, PyTree]:
        return {}

    abstract_frozen = frozen

    def transform(self, dataset: Dataset) -> Transform | None:
        return None

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        if self.num_classes == 1:
            return ()
        return tuple(class_names or (f"class {label}" for label in range(self.num_classes)))

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        if self.num_classes == 1:
            return _in_turn(data, len(labels))
        return _of_classes(data, labels, names)


@dataclass(frozen=True)
class Unconditional:
    """Nothing: every example has the condition 0, whatever its label.

    Attributes:
        num_rows: rows of sample sheets.
    """

    num_rows: int = 1
    num_classes: ClassVar[int] = 0
    is_empty: ClassVar[bool] = True  # so that guidance by it changes nothing
    network_fields = Classes.network_fields

    def of_batch(self, batch: dict[str, Array]) -> Int[Array, " batch"]:
        return jnp.zeros(_length(batch), int)

    def null(self, frozen: PyTree) -> int:
        return 0

    def of_labels(self, labels: Int[Array, " batch"], frozen: PyTree) -> Int[Array, " batch"]:
        return jnp.zeros_like(labels)

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        return ()

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        return _in_turn(data, len(labels))

    example, abstract_batch, transform = Classes.example, Classes.abstract_batch, Classes.transform
    frozen, abstract_frozen = Classes.frozen, Classes.abstract_frozen


@dataclass(frozen=True)
class Frames:
    """The first frames of a clip, `[batch count height width channels]` in [−1, 1].

    Zeros replace dropped frames. Sample sheets continue the first clips of the held-out split.

    Attributes:
        data: where the clips are.
        count: frames that the network sees.
        num_rows: rows of sample sheets.
    """

    data: Data
    count: int = 1
    num_rows: int = 4
    num_classes: ClassVar[int] = 0
    network_fields: ClassVar[dict] = {}
    abstract_batch = Classes.abstract_batch

    def example(self) -> Float[Array, "1 count height width channels"]:
        return jnp.zeros((1, self.count, *self.data.image_shape[1:]))

    def of_batch(
        self, batch: dict[str, Array]
    ) -> Float[Array, "batch count height width channels"]:
        return to_float(batch[self.data.feature][:, : self.count])

    def null(self, frozen: PyTree) -> Float[Array, "count height width channels"]:
        return self.example()[0]

    def of_labels(self, labels: Int[Array, " batch"], frozen: PyTree) -> Array:
        return frozen["frames"][labels]

    def transform(self, dataset: Dataset) -> None:
        """Check before training that there is a held-out clip for each row."""
        self._own_clips()

    def frozen(self) -> dict[str, PyTree]:
        return {"frames": to_float(self._own_clips()[:, : self.count])}

    def _own_clips(self) -> UInt8[np.ndarray, "rows time height width channels"]:
        """Return the clip of each row; raise ValueError if there are fewer clips."""
        clips = self.data.held_out().source[: self.num_rows][self.data.feature]
        if len(clips) < self.num_rows:
            raise ValueError(
                f"config.condition.num_rows is {self.num_rows}, and {self.data.name} "
                f"({self.data.held_out_split}) has {len(clips)} clips: set fewer rows"
            )
        return clips

    def abstract_frozen(self) -> dict[str, PyTree]:
        shape = self.num_rows, *self.example().shape[1:]
        return {"frames": jax.ShapeDtypeStruct(shape, jnp.float32)}

    @property
    def num_held_out_clips(self) -> int:
        """The number of clips that labels stand for."""
        return self.num_rows

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(f"clip {label}" for label in range(self.num_rows))

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        return RealExamples(self._own_clips()[labels], names)


def _length(batch: dict[str, Array]) -> int:
    return len(next(iter(batch.values())))


def _in_turn(data: Data, count: int) -> RealExamples:
    """Return the first held-out examples, from the start again where there are fewer."""
    points = len(data.image_shape) == 1  # of which thousands share one picture
    shown = data.held_out().source[:][data.feature] if points else data.shown
    places = np.arange(count)
    return RealExamples(shown[places % len(shown)], (), places < len(shown))


def _of_classes(data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
    """Return held-out examples of these classes, and training examples where there are too few.

    At most `SEARCHED` examples of a split are searched, in a fixed order. Training examples are
    searched only if the whole held-out split was searched. Places that stay empty are grey, or
    zero where data are not bytes.
    """
    held_out = data.held_out().source
    first = held_out[:1][data.feature]
    filling = 128 if first.dtype == np.uint8 else 0
    examples = np.full((len(labels), *first.shape[1:]), filling, first.dtype)
    empty = np.ones(len(labels), bool)
    _fill(examples, empty, held_out, data.feature, labels)
    if empty.any() and len(held_out) <= SEARCHED:
        missing = empty.copy()
        _fill(examples, empty, data.train().source, data.feature, labels)
        counts = collections.Counter(labels[missing & ~empty].tolist())
        names = [
            f"{name} ({counts[label]} {FROM_TRAINING}" if label in counts else name
            for label, name in enumerate(names)
        ]
    return RealExamples(examples, names, ~empty)


def _fill(
    examples: np.ndarray, empty: np.ndarray, source: Any, feature: str, labels: np.ndarray
) -> None:
    """Write examples of a source into the empty places of their labels, and mark the places."""
    rows = np.random.default_rng(0).permutation(len(source))[:SEARCHED]
    for start in range(0, len(rows), 100):  # at once they could be larger than the memory
        part = source[rows[start : start + 100]]
        for label, example in zip(part["label"], part[feature], strict=True):
            places = np.flatnonzero(empty & (labels == label))[:1]
            examples[places], empty[places] = example, False
        if not empty.any():
            break


@functools.cache
def _text_encoder(name: str, length: int) -> Callable[[list[str]], Text]:
    """Return the text encoders of a published system's folder, or the encoder called `name`.

    A text for each stream, as of LTX-2, becomes one.
    """
    if "/" in name or Path(name).is_dir():
        encode = load_encoder(name)
        joined = lambda text: text if isinstance(text, Text) else join_texts(text)
        return lambda prompts: joined(encode(prompts))
    return kinds.TEXT_ENCODER.find(name, "condition.encoder")(length)


def _may_be_same(there: str, own: str) -> bool:
    """Return whether two descriptions may be of one encoder.

    A folder may have been moved, or be named as seen from another folder. Then nobody can say that
    folders of one name differ.
    """
    (theirs, its_length), (ours, our_length) = (each.rsplit(",", 1) for each in (there, own))
    if its_length != our_length or Path(theirs).name != Path(ours).name:
        return False
    both_exist = Path(theirs).is_dir() and Path(ours).is_dir()
    return os.path.samefile(theirs, ours) if both_exist else True


@dataclass(frozen=True)
class Prompts:
    """Text after a frozen encoder: a state per token, and `pooled`, which describes the whole.

    MiniLM's `pooled` is the sentence's embedding.

    Attributes:
        encoder: "minilm", a dotted path, or the folder of a published system with its text
            encoders.
        length: tokens of a prompt, filled with padding that is masked, or cut.
        features, pooled_features: of a token's state, and of `pooled`, 0 if the encoder has none.
        first_caption: probability that an example is trained with its first caption, its name.
        prompts: what labels 0, 1, … stand for: the rows of sample sheets.
        directory: of encoded prompts, if not the usual one.

    Raises:
        ValueError: a prompt is empty, or has no tokens; or, where prompts are encoded, the encoder
            has other numbers of features.
    """

    encoder: str
    length: int
    features: int
    pooled_features: int
    first_caption: float
    prompts: tuple[str, ...] = field(compare=False)  # no program depends on them
    directory: str | None = field(default=None, compare=False)
    num_classes: ClassVar[int] = 0

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"config.condition.length is {self.length}; a prompt has 1 or more")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(
                f"one of the prompts {list(self.prompts)} is empty; give it words, or sample "
                "without a prompt by config.sampling.guidance_scale=0"
            )

    @property
    def num_rows(self) -> int:
        return len(self.prompts)

    @property
    def network_fields(self) -> dict[str, int]:
        return {}

    @property
    def folder(self) -> Path:
        """Where encoded prompts are kept."""
        name = f"prompts-{Path(self.encoder).name}-{self.length}"
        return Path(self.directory or cache_folder() / name)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        text = jax.eval_shape(self.example)
        shaped = lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        return {name: shaped(getattr(text, name)) for name in ("tokens", "pooled", "mask")}

    def example(self) -> Text:
        mask = jnp.ones((1, self.length), bool)
        return Text(
            jnp.zeros((1, self.length, self.features)), jnp.zeros((1, self.pooled_features)), mask
        )

    def of_batch(self, batch: dict[str, Array]) -> Text:
        return Text(batch["tokens"], batch["pooled"], batch["mask"])

    def null(self, frozen: PyTree) -> Text:
        return frozen["empty"]

    def of_labels(self, labels: Int[Array, " batch"], frozen: PyTree) -> Text:
        return jax.tree.map(lambda a: a[labels], frozen["prompts"])

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts that labels stand for."""
        return self.prompts

    def frozen(self) -> dict[str, PyTree]:
        empty, prompts = self._stacked([""]), self._stacked(self.texts)
        return {"empty": jax.tree.map(lambda a: a[0], empty), "prompts": prompts}

    def abstract_frozen(self) -> dict[str, PyTree]:
        """Return what `frozen` would load, in shapes; encode no text."""
        of = lambda *batch: jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((*batch, *a.shape[1:]), a.dtype),
            jax.eval_shape(self.example),
        )
        return {"empty": of(), "prompts": of(self.num_rows)}

    def transform(self, dataset: Dataset) -> Transform:
        """Return a transform that adds encoded captions to examples.

        Captions that are not in the cache are encoded first.

        Raises:
            ValueError: the data set has no captions.
        """
        if dataset.captions is None:
            raise ValueError(
                f"{dataset.name} has no captions to condition on; take "
                "config.condition.name=Classes or Unconditional"
            )
        captions = dataset.captions
        if self.first_caption >= 1:
            captions = [texts[:1] for texts in captions]
        cache = self.cached([prompt for texts in captions for prompt in texts])
        return with_prompts(cache, captions, self.length, self.first_caption)

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        return self.prompts

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        return _in_turn(data, len(labels))

    def cached(self, prompts: Sequence[str]) -> PromptCache:
        """Return the cache with these prompts in it."""
        encoder = os.path.realpath(self.encoder) if Path(self.encoder).is_dir() else self.encoder
        origin = f"{encoder}, at most {self.length} tokens"
        cache = PromptCache(self.folder, origin, _may_be_same)
        missing = sum(prompt not in cache for prompt in set(prompts))
        if missing:
            with ProgressBar("encoding", 0, missing, "prompts") as progress:
                for done in cache.add(prompts, self._encode, batch_size=BATCH):
                    progress.update(done)
        return cache

    def embeddings(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of whole sentences, `[prompts features]`."""
        cache = self.cached(prompts)
        return np.stack([cache[prompt]["pooled"] for prompt in prompts])

    def _encode(self, prompts: list[str]) -> list[dict[str, np.ndarray]]:
        filled = prompts + [""] * (BATCH - len(prompts))  # one shape, one program
        text = jax.device_get(_text_encoder(self.encoder, self.length)(filled))
        masks = np.ones(text.tokens.shape[:2], bool) if text.mask is None else text.mask
        pooled = np.zeros((len(filled), 0), np.float32) if text.pooled is None else text.pooled
        given = text.tokens.shape[-1], pooled.shape[-1]
        expected = self.features, self.pooled_features
        if given != expected:
            raise ValueError(
                f"{self.encoder} encodes features and pooled_features of {given}, and "
                f"config.condition has {expected}: set --config.condition.features={given[0]} "
                f"--config.condition.pooled_features={given[1]}"
            )
        return [
            {"tokens": text.tokens[i][masks[i]], "pooled": pooled[i]} for i in range(len(prompts))
        ]

    def _stacked(self, prompts: Sequence[str]) -> Text:
        cache = self.cached(prompts)
        rows = [padded(cache[prompt], self.length) for prompt in prompts]
        stacked = lambda name: np.stack([row[name] for row in rows])
        return Text(stacked("tokens"), stacked("pooled"), stacked("mask"))
