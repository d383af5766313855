"""Measures of models with an exact likelihood."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.uncertainty import standard_error
from experiments.inputs.datasets import labels_of
from genjax.training.pictures import paired_grid

SHOWN = 20


@dataclass(frozen=True)
class ExactBits:
    """Measure bits per dimension of held-out images, exactly, given their classes.

    The picture shows images, how many bits their pixels take (white is the most), and what the
    model makes of their first half of rows.

    Attributes:
        num_images: of the held-out split, in its order; all if None.
    """

    context: Context
    num_images: int | None = None
    needs: ClassVar[tuple[str, ...]] = ("log_probabilities", "completions")

    def __post_init__(self):
        self.context.check_classes("ExactBits")

    def __call__(self, model: Model) -> dict[str, Any]:
        source = self.context.data.held_out().source
        rows = np.arange(len(source))[: self.num_images]
        bits, shown = [], None
        for start in range(0, len(rows), 1000):  # at once they could be larger than the memory
            part = source[rows[start : start + 1000]]
            images, labels = part[self.context.data.feature], labels_of(part)
            shown = (images[:SHOWN], labels[:SHOWN]) if shown is None else shown
            nats = in_batches(model.functions["log_probabilities"], images, labels, size=100)
            bits.append(-nats / np.log(2))
        bits = np.concatenate(bits)
        each = bits.reshape(len(bits), -1).mean(axis=1)
        keys = jax.random.split(jax.random.key(0), len(shown[0]))
        completed = model.functions["completions"](*shown, keys, shown[0].shape[1] // 2)
        surprise = bits[: len(shown[0])]
        rows = {
            "original": shown[0],
            "bits": (surprise * (255 / surprise.max())).astype(np.uint8),
            "completed": np.asarray(completed),
        }
        return {
            "bits_per_dimension": float(each.mean()),
            "bits_per_dimension_error": standard_error(each),
            "likelihood_images": len(each),
            "completions": paired_grid(rows),
        }
