"""Pairs of noise and the sample that a teacher made from it, as training examples of a student."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from PIL import Image

from genjax.training.task import Space


@dataclass(frozen=True)
class Pairs:
    """Another space whose examples are pairs `[2 *shape]`, read from a folder.

    `experiments.encode` writes that folder. Pairs are in the space of the network, as the teacher
    sampled them, so nothing is encoded.

    Attributes:
        base: the space of noise and samples.
        directory: the folder of the pairs.
        made_by: loads the teacher's parameters, which make the pairs.
    """

    base: Space
    directory: str
    made_by: Callable[[], PyTree] = field(compare=False)
    feature = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def autoencoder(self) -> Any:
        return self.base.autoencoder

    @property
    def to_data(self) -> Callable[[Array], Array]:
        return self.base.to_data

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {self.feature: jax.ShapeDtypeStruct((2, *self.shape), jnp.float32)}

    def frozen(self) -> dict[str, PyTree]:
        return self.base.frozen()

    def abstract_frozen(self) -> dict[str, PyTree]:
        return self.base.abstract_frozen()

    def encode(self, pairs: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        """Return the samples of pairs."""
        return pairs[:, 1]

    def noise(self, pairs: Array) -> Float[Array, " batch *shape"]:
        """Return the noise of pairs, of deviation 1."""
        return pairs[:, 0]

    def decode(self, samples: Float[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        return self.base.decode(samples, frozen)

    def picture(self, examples: np.ndarray, columns: int) -> Image.Image:
        return self.base.picture(examples, columns)
