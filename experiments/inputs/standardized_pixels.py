"""The space of standardized pixels: each pixel less its mean, over its deviation."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Pixels
from genjax.data import to_float
from genjax.training.workdir import Config


@dataclass(frozen=True)
class StandardizedPixels:
    """Images or clips, each pixel less its mean, over its deviation, both of training examples.

    A small moving object then weighs as much as a large change of the whole picture. Frames of a
    clip share their moments. A run that is opened measures its training data again, and needs them.

    Attributes:
        pixels: the examples themselves.
        data: where the training examples are.
        examples: how many of the first ones are measured.
        floor: the least deviation, of pixels in [−1, 1]. Pixels that never change have it.
    """

    pixels: Pixels
    data: Data
    examples: int
    floor: float
    autoencoder: ClassVar[None] = None

    @classmethod
    def from_data(
        cls, data: Any, *, config_field: str = "space", examples: int = 1000, floor: float = 0.02
    ) -> Self:
        """Return the standardized pixels of a data set.

        Args:
            config_field: the field of the config that names this space.

        Raises:
            ValueError: its shape has another rank, or a number is not positive.
        """
        if examples < 1 or not floor > 0:
            raise ValueError(
                f"config.{config_field}.examples is {examples} and config.{config_field}.floor is "
                f"{floor}: take positive numbers"
            )
        source = Data.from_config(Config(data=Config(dict(data))))
        return cls(Pixels.from_data(data), source, examples, floor)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    @property
    def feature(self) -> str:
        return self.pixels.feature

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.pixels.abstract_batch()

    def frozen(self) -> dict[str, PyTree]:
        """Measure the moments of each pixel: `mean` and `deviation`, `[height width channels]`.

        Sums are in float64: in float32, sums over thousands of frames lose their last digits.
        """
        measured = self.data.train().source[: self.examples][self.feature]
        measured = np.asarray(to_float(measured)).reshape(-1, *self.shape[-3:])
        mean = measured.mean(0, dtype=np.float64).astype(np.float32)
        variance = np.square(measured - mean).mean(0, dtype=np.float64)
        deviation = np.maximum(np.sqrt(variance), self.floor).astype(np.float32)
        return {"moments": {"mean": mean, "deviation": deviation}}

    def abstract_frozen(self) -> dict[str, PyTree]:
        moment = jax.ShapeDtypeStruct(self.shape[-3:], jnp.float32)
        return {"moments": {"mean": moment, "deviation": moment}}

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        moments = frozen["moments"]
        return (self.pixels.encode(examples) - moments["mean"]) / moments["deviation"]

    def decode(self, samples: Float[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        moments = frozen["moments"]
        return samples * moments["deviation"] + moments["mean"]

    to_data, picture = staticmethod(Pixels.to_data), staticmethod(Pixels.picture)


def check_not_standardized(space: Any, reader: str) -> None:
    """Raise ValueError if the space is `StandardizedPixels`, for what reads pixels in [−1, 1]."""
    if isinstance(space, StandardizedPixels):
        raise ValueError(
            f"config.space.name is StandardizedPixels, and {reader} reads pixels in [−1, 1]: set "
            "config.space.name=Pixels"
        )
