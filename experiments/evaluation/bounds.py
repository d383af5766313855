"""Measures of models with a bound on their likelihood."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.evaluation.context import Context, Model, in_batches


@dataclass(frozen=True)
class BoundBits:
    """Measure an upper bound on the bits per dimension of held-out images, given their classes.

    Where the space has codes, these are bits per code, of the images' codes.

    Attributes:
        num_images: of the held-out split, in its order; all if None.
        batch_size: images at once; each batch has its own noise.
    """

    context: Context
    num_images: int | None = None
    batch_size: int = 100
    needs: ClassVar[tuple[str, ...]] = ("bound",)

    def __post_init__(self):
        self.context.check_classes("BoundBits")

    def __call__(self, model: Model) -> dict[str, Any]:
        source = self.context.data.held_out().source
        part = source[np.arange(len(source))[: self.num_images]]
        images = part[self.context.data.feature]
        labels = part.get("label", np.zeros(len(images), np.int32))
        nats = in_batches(
            model.functions["bound"], images, labels, np.arange(len(images)), size=self.batch_size
        )
        bits = -nats / (np.log(2) * np.prod(self.context.space.shape))
        return {
            "bits_per_dimension": float(bits.mean()),
            "bits_per_dimension_error": float(bits.std() / np.sqrt(len(bits))),
            "likelihood_images": len(bits),
        }
