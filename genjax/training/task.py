"""What the training loop asks of a family of models."""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key, PyTree

from genjax.training.log import Mean


@runtime_checkable
class Task(Protocol):
    """A network, an algorithm and their optimization, as pure functions that the loop may jit.

    The state is any pytree with a `step`, the number of updates made, as an int32 scalar; nothing else in
    it concerns the loop.

    A task that reads networks it does not train, such as published ones, also has `frozen() -> tuple` of pytrees, which
    loads them. `update` takes them after its other arguments. They are no part of the state nor of its checkpoints.
    """

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The state before the first update."""

    def update(
        self, state: PyTree, batch: dict[str, jax.Array], key: Key[Array, ""], *frozen: PyTree
    ) -> tuple[PyTree, dict[str, Float[Array, ""] | Mean]]:
        """The state after one more step, and metrics: scalars, or the total and count of a `Mean`.

        The loop stops when one is not finite.
        """

    def generate(self, state: PyTree, key: Key[Array, ""], *args: Any, **options: Any) -> Array:
        """Samples."""
