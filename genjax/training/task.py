"""The protocol of tasks: what the training loop needs, and what sampling and measuring need.

A task is a network, an algorithm and their optimization. Its numbers come from a config. Its data,
and the evaluators that measure its samples, are separate objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree
from PIL import Image

from genjax.training.log import Mean


@runtime_checkable
class Task(Protocol):
    """Pure functions that the training loop may jit.

    The state is any pytree with a `step`, the number of updates made, as an int32 scalar. Nothing
    else in it concerns the loop.

    A task that reads networks it does not train also has `frozen() -> tuple` of pytrees, which
    loads them, and may have `abstract_frozen() -> tuple`, which gives their shapes and loads
    nothing. `update` takes them after its other arguments. Neither state nor checkpoints contain
    them.
    """

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Return the state before the first update."""

    def update(
        self, state: PyTree, batch: dict[str, jax.Array], key: Key[Array, ""], *frozen: PyTree
    ) -> tuple[PyTree, dict[str, Float[Array, ""] | Mean]]:
        """Return the state after one more step, and metrics: scalars, or totals and counts.

        The loop stops when a metric is not finite.
        """

    def generate(self, state: PyTree, key: Key[Array, ""], *args: Any, **options: Any) -> Array:
        """Return samples."""


class Space(Protocol):
    """The space a network works in: pixels, points, latents or tokens of a frozen autoencoder.

    Attributes:
        shape: of one example as the network sees it.
        feature: the name of that example in a batch.
        autoencoder: what encodes and decodes, or None where the network sees the data themselves.
    """

    shape: tuple[int, ...]
    feature: str
    autoencoder: Any

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes and types of one example's entries in a batch."""

    def frozen(self) -> dict[str, PyTree]:
        """Load what `encode` and `decode` read, by names of this space's own."""

    def abstract_frozen(self) -> dict[str, PyTree]:
        """Return what `frozen` would load, in shapes. Loads nothing."""

    def encode(self, examples: Array, frozen: PyTree = None) -> Num[Array, " batch *shape"]:
        """Return what the network sees of a batch's examples: floats, or integer tokens."""

    def decode(self, samples: Num[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        """Return data in [−1, 1], or points, of what the network makes."""

    def to_data(self, decoded: Float[Array, " batch *data"]) -> Array:
        """Return decoded samples in the type of the data set: bytes for pixels."""

    def picture(self, examples: np.ndarray, columns: int) -> Image.Image:
        """Draw examples of the data's type, so many in a row."""


class RealExamples(NamedTuple):
    """Real examples to see beside samples.

    Attributes:
        examples: one for each label, in the form of the data.
        names: of the rows of a sheet, by label; () where rows mean nothing. The name of a row with
            training examples ends in `FROM_TRAINING`.
        present: whether an example is another one than those before it; None if all are. The data
            have too few for the other places, which are empty or repeat an example.
    """

    examples: PyTree[np.ndarray]
    names: Sequence[str]
    present: Bool[np.ndarray, " labels"] | None = None


FROM_TRAINING = "from training)"


class Condition(Protocol):
    """The condition of a network: a class, a prompt, nothing.

    Attributes:
        num_rows: rows of sample sheets; labels 0, 1, … stand for them.
        num_classes: of class conditions; 0 for others.
        network_fields: fields of the network that follow from the condition, such as `num_classes`.

    A condition that tells the network nothing may say so by a true `is_empty`.
    """

    num_rows: int
    num_classes: int
    network_fields: dict[str, Any]

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes and types of what `of_batch` reads of an example beside its label."""

    def transform(self, dataset: Any) -> Any:
        """Return what adds this condition to an example of a data set, or None."""

    def frozen(self) -> dict[str, PyTree]:
        """Load what `null` and `of_labels` read, by names of this condition's own."""

    def abstract_frozen(self) -> dict[str, PyTree]:
        """Return what `frozen` would load, in shapes. Loads nothing."""

    def example(self) -> PyTree:
        """Return the condition of a batch of one, to make a network's parameters."""

    def of_batch(self, batch: dict[str, Array]) -> PyTree:
        """Return the conditions of a training batch."""

    def null(self, frozen: PyTree) -> PyTree:
        """Return what stands in for a condition that is dropped."""

    def of_labels(self, labels: Int[Array, " batch"], frozen: PyTree) -> PyTree:
        """Return the conditions that labels stand for."""

    def row_names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names of the rows of sample sheets, by label; () where rows mean nothing.

        Args:
            class_names: of the data set, if its classes have names.
        """

    def real_examples(
        self, data: Any, labels: Int[np.ndarray, " samples"], names: Sequence[str]
    ) -> RealExamples:
        """Return held-out examples to see beside samples of these labels.

        Args:
            data: the data set as a config describes it, with `held_out()` and `train()`.
            names: as `row_names` gives them.
        """


class GenerativeTask(Task, Protocol):
    """A task as programs see it that sample, evaluate, plan and report.

    A task whose samples are reconstructions may have `num_originals`, the number of different ones.
    A task that `config.sampling` takes part in building may have `built_with`, the names of those
    fields: `Run.sample` builds the task anew for other values. A task may have `optional_sampling`,
    the names of fields that it reads and `config.sampling` may lack. A task whose training reads
    `config.sampling` may have `trained_with`, the names of the fields that it reads.
    A task that trains on packed rows has their form, `packing` (`genjax.data.RowFormat`).

    Attributes:
        space, condition: the network's input and its conditioning.
        animation: the name of the picture that `generate(…, trajectory=True)` makes.
    """

    space: Space
    condition: Condition
    animation: str

    @property
    def network(self) -> nn.Module:
        """The network that samples: a GAN's generator, an autoencoder, a denoiser."""

    def variables(self, state: PyTree, weights: str) -> dict[str, PyTree]:
        """Return the network's variables: "params" are the last step's, other names averages."""

    def networks(self, state: PyTree, weights: str) -> dict[str, dict[str, PyTree]]:
        """Return the variables of each trained network by name; the sampling one's by `weights`."""

    def start_from(self, state: PyTree, networks: dict[str, dict[str, PyTree]]) -> PyTree:
        """Return a first state whose networks have other variables, as `networks` gives them.

        Averages start at these variables, and optimizers anew.
        """

    def is_sampled_from(self, path: str, weights: str) -> bool:
        """Return whether sampling or evaluating by these weights reads an array of the state.

        Args:
            path: names of the array's place in the state, joined by "/".
        """

    def sampling_inputs(self, sampling: Any) -> tuple:
        """Return what `generate` takes after labels and indices, by `config.sampling`."""

    def abstract_sampling_inputs(
        self, sampling: Any, batch: dict[str, jax.ShapeDtypeStruct], frozen: tuple
    ) -> tuple:
        """Return `sampling_inputs` without loading anything.

        Args:
            batch: a training batch in shapes.
            frozen: what `abstract_frozen` gives.
        """

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network for one sample.

        With guidance an evaluation is of a pair, with the condition and without.
        """

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        """Return how samples are made, for reports."""

    def functions(self, state: PyTree, sampling: Any) -> dict[str, Any]:
        """Return the functions of a trained state that evaluators may ask for, by name.

        `reconstruct(examples)`, `bounds(…)`, `logits(…)`: each evaluator says what it needs.
        """

    def alarms(self, metrics: Mapping[str, float]) -> Sequence[str]:
        """Return what is going wrong by these metrics, a sentence each."""
