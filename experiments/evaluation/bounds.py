"""Measures of models with a bound on their likelihood."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.uncertainty import standard_error
from experiments.inputs.datasets import labels_of
from genjax import diffusion


@dataclass(frozen=True)
class BoundBits:
    """Measure an upper bound on the bits per dimension of held-out images, given their classes.

    The bits are per code where the space has codes.

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
        source, nats = self.context.data.held_out().source, []
        rows = np.arange(len(source))[: self.num_images]
        for start in range(0, len(rows), self.batch_size):  # all could be larger than the memory
            indices = rows[start : start + self.batch_size]
            part = source[indices]
            inputs = part[self.context.data.feature], labels_of(part), indices
            nats.append(in_batches(model.functions["bound"], *inputs, size=self.batch_size))
        bits = -np.concatenate(nats) / (np.log(2) * np.prod(self.context.space.shape))
        return {
            "bits_per_dimension": float(bits.mean()),
            "bits_per_dimension_error": standard_error(bits),
            "likelihood_images": len(bits),
        }


def noisy_process(process: diffusion.Process, clean_end: float) -> diffusion.Process:
    """Return the process with a domain that starts with noise, so that its bound is finite.

    A domain that starts with noise, as EDM's does, stays. There sigma would be 0.08 at a
    thousandth of the time, ten times the distance of 256 levels.

    Args:
        clean_end: start of the domain, in parts of the time, if sigma is 0 where it starts now.

    Raises:
        ValueError: `clean_end` is not between 0 and 1.
    """
    if not 0 < clean_end < 1:
        raise ValueError(f"--clean_end={clean_end} is a part of the time, between 0 and 1")
    start, end = process.domain
    if process.sigma(jnp.asarray(start)) > 0:
        return process
    return replace(process, domain=(max(start, clean_end * end), end))
