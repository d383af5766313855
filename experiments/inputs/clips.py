"""Prompts with clips: samples begin like a held-out clip, under its caption."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num, PyTree, UInt8

from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data
from genjax.training.task import RealExamples


@dataclass(frozen=True)
class CaptionedClips(Prompts):
    """Prompts whose labels also stand for held-out clips, which samples take frames of.

    A prompt's clip has the prompt as its caption. Where a prompt is repeated, each gets another
    clip, as far as there are. A prompt that is no caption gets any clip.

    Attributes:
        data: where the clips are.
        rows: of sample sheets, whose prompts are the captions of the first held-out clips.
        prompts: in place of these captions; one for each row.
    """

    data: Data = None
    rows: int = 8
    prompts: tuple[str, ...] = field(default=(), compare=False)

    @property
    def num_rows(self) -> int:
        return len(self.prompts) or self.rows

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts, or the captions of the clips.

        Raises:
            ValueError: there are fewer clips with captions than rows.
        """
        if self.prompts:
            return self.prompts
        captions = self.data.held_out().captions or ()
        if len(captions) < self.rows:
            raise ValueError(
                f"config.condition.rows is {self.rows}, and {self.data.name} "
                f"({self.data.held_out_split}) has {len(captions)} clips with captions: set fewer "
                "rows, or prompts"
            )
        return tuple(texts[0] for texts in captions[: self.rows])

    def own_rows(self) -> Int[np.ndarray, " rows"]:
        """Return the held-out clip of each row, by its number."""
        held_out, alike, rows = self.data.held_out(), defaultdict(list), []
        for row, texts in enumerate(held_out.captions):
            alike[texts[0]].append(row)
        seen = Counter()
        for number, text in enumerate(self.texts):
            places = alike.get(text) or [number % len(held_out.source)]
            rows.append(places[seen[text] % len(places)])
            seen[text] += 1
        return np.array(rows)

    def _own_clips(self) -> UInt8[np.ndarray, "rows time height width channels"]:
        """Return the clip of each row."""
        return self.data.held_out().source[self.own_rows()][self.data.feature]

    def clips(
        self, labels: Int[Array, " batch"], frozen: PyTree
    ) -> PyTree[Num[Array | np.ndarray, "batch ..."]]:
        """Return the clips that labels stand for."""
        return jax.tree.map(lambda a: a[labels], frozen["clips"])

    def frozen(self) -> dict[str, PyTree]:
        return super().frozen() | {"clips": self._own_clips()}

    def abstract_frozen(self) -> dict[str, PyTree]:
        clips = jax.ShapeDtypeStruct((self.num_rows, *self.data.image_shape), jnp.uint8)
        return super().abstract_frozen() | {"clips": clips}

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        return self.texts

    def real_examples(self, data: Data, labels: np.ndarray, names: Sequence[str]) -> RealExamples:
        return RealExamples(jax.tree.map(lambda a: a[labels], self._own_clips()), names)
