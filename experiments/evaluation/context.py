"""The inputs of evaluators: facts known before training, and functions of a trained state."""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.inputs.datasets import Data
from genjax.data import Dataset
from genjax.training.ema import PowerFunction
from genjax.training.sampling import POSTHOC, sample
from genjax.training.task import Condition, GenerativeTask, Space
from genjax.training.workdir import Config

LABELS = ("balanced", "training", "none")


@dataclass(frozen=True)
class Context:
    """Facts of an experiment that are known before training.

    Attributes:
        num_samples: samples to measure; at most as many held-out examples are used.
        labels: classes of the samples. "balanced" takes all classes equally often. "training" draws
            them from the training set's labels, for classes of different sizes. "none" takes 0.
    """

    data: Data
    space: Space
    condition: Condition
    num_samples: int
    labels: str = "balanced"

    def __post_init__(self):
        if self.labels not in LABELS:
            raise ValueError(
                f"config.evaluation.labels is {self.labels!r}; take one of {', '.join(LABELS)}"
            )

    @property
    def class_conditional(self) -> bool:
        """Whether the network gets a class for each sample, so that the sample may be right."""
        return self.condition.num_classes > 1 and self.labels != "none"

    def check_classes(self, measure: str) -> None:
        """Check that labels are classes, for a measure that gives the network classes.

        Raises:
            ValueError: labels are numbers of prompts.
        """
        if hasattr(self.condition, "prompts"):
            raise ValueError(
                f"config.evaluation.measures has {measure}, which gives the network classes, "
                "and this network takes prompts: take PromptMatch, or PretrainedFeatures"
            )

    def check_feature(self, measure: str, feature: str, kind: str) -> None:
        """Raise ValueError if `config.data.feature` is not what a measure reads."""
        if self.data.feature != feature:
            raise ValueError(
                f"config.evaluation.measures has {measure}, which measures {kind}; "
                f"config.data.feature is {self.data.feature!r}: leave it out"
            )

    def draw_labels(self, training: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the labels of the samples, `[num_samples]`: classes, or numbers of held-out clips.

        Args:
            training: gives the training set's classes.

        Raises:
            ValueError: labels are numbers of clips, and are not to be balanced.
        """
        num_clips = getattr(self.condition, "num_held_out_clips", 0)
        if self.labels == "balanced":
            return np.arange(self.num_samples) % max(self.condition.num_classes, num_clips, 1)
        if num_clips:
            raise ValueError(
                f"config.evaluation.labels is {self.labels!r}, and labels of "
                f"{type(self.condition).__name__} are numbers of held-out clips: take 'balanced'"
            )
        if self.labels == "training":
            return np.random.default_rng(0).choice(training(), self.num_samples)
        return np.zeros(self.num_samples, int)


def described_files(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return which files of data sets were skipped and how many were converted."""
    conversions = collections.Counter()
    for dataset in datasets:
        conversions.update(dataset.conversions)
    skipped = {path: why for dataset in datasets for path, why in dataset.skipped.items()}
    return {"skipped_files": skipped, "converted_files": dict(conversions)}


class Model:
    """Functions of one trained state that an evaluator may call.

    Attributes:
        sampling: the sampling fields of the config, `config.sampling`.
        functions: of the task, by name: `reconstruct`, `bounds`, `logits` …
        how: the way samples are made, for reports.
        average: the rule of the averaged weights that make the samples; None if they are no
            average.
    """

    def __init__(self, task: GenerativeTask, state: Any, sampling: Config):
        self._task, self._state, self.sampling = task, state, sampling
        self.functions = task.functions(state, sampling)
        how = {"weights": sampling.weights, "seed": sampling.seed}
        self.how = {**task.describe_sampling(sampling), **how}
        self.average = _average(task, sampling.weights)
        self._samples: dict[Any, np.ndarray] = {}

    @property
    def num_parameters(self) -> int:
        """The number of parameters of the network that samples."""
        return _count(self._task.variables(self._state, self.sampling.weights)["params"])

    @property
    def num_frozen_parameters(self) -> int:
        """The number of parameters of the frozen autoencoder, or 0 without one."""
        return _count(self._task.space.frozen()) if self._task.space.autoencoder else 0

    @property
    def num_evaluations(self) -> int:
        """How often sampling evaluates the network for one sample."""
        return self._task.num_evaluations(self.sampling)

    def sample(
        self, labels: np.ndarray, prompts: Sequence[str] | None = None, **changes: Any
    ) -> np.ndarray:
        """Return samples in the form of the data; equal requests share their samples.

        Args:
            labels: of each sample, `[samples]`: classes, or numbers of prompts.
            prompts: the texts that labels stand for, in place of the condition's own.
            changes: other values of fields of `sampling`.
        """
        prompts = prompts and tuple(prompts)
        request = (tuple(labels.tolist()), prompts, tuple(sorted(changes.items())))
        if request not in self._samples:
            task = self._task.with_prompts(prompts) if prompts else self._task
            sampling = Config(dict(self.sampling) | changes)
            self._samples[request] = sample(task, self._state, labels, sampling)
        return self._samples[request]


def _count(arrays: PyTree) -> int:
    return sum(a.size for a in jax.tree.leaves(arrays))


def _average(task: GenerativeTask, weights: str) -> str | None:
    """Return the rule of an average in words: "HalfLife(steps=150.0)"."""
    if weights.startswith(POSTHOC):
        return str(PowerFunction(float(weights.removeprefix(POSTHOC))))
    rule = dict(getattr(task, "averages", ())).get(weights)
    return None if rule is None else str(rule)


def in_batches(function: Callable, *arrays: np.ndarray, size: int = 50) -> Any:
    """Return `function(*arrays)` in NumPy, computed on `size` rows at a time.

    The last batch is filled up, so there is one shape and one compilation.
    """
    results = []
    for start in range(0, len(arrays[0]), size):
        rows = [a[start : start + size] for a in arrays]
        padded = [np.concatenate([a, np.repeat(a[:1], size - len(a), 0)]) for a in rows]
        results.append(jax.tree.map(lambda a: np.asarray(a)[: len(rows[0])], function(*padded)))  # noqa: B023
    return jax.tree.map(lambda *each: np.concatenate(each), *results)
