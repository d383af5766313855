"""The objective of several modalities, each with its own process, times, target and weight."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from experiments.configuration import kinds
from experiments.tasks.diffusion import TIME_BINS, Objective
from genjax import diffusion
from genjax.training.workdir import Config

OWN = ("weight", "process", "target", "times", "weighting")  # what a modality may set itself


@dataclass(frozen=True)
class JointObjective:
    """The objectives of the modalities, each with its own process, times, target and weight."""

    parts: tuple[tuple[str, Objective], ...]
    weights: tuple[tuple[str, float], ...]
    loss: Callable
    dropout_rate: float
    learned_variance = False
    denoiser = Objective.denoiser

    @classmethod
    def from_config(cls, config: Any) -> "JointObjective":
        """Return the objective; what a modality does not set itself is that of the config.

        Raises:
            ValueError: a modality has no weight, or sets what all modalities share.
        """
        parts, weights = {}, {}
        for name, fields in config.modalities.items():
            fields = dict(fields)
            if "weight" not in fields or set(fields) - set(OWN):
                raise ValueError(
                    f"config.modalities.{name} has {', '.join(fields) or 'no fields'}; it needs a "
                    f"weight, and may have {', '.join(OWN[1:])} of its own"
                )
            weights[name] = fields.pop("weight")
            parts[name] = Objective.from_config(Config(dict(config) | fields))
        loss = kinds.LOSS.bind(config.loss, "loss")
        shared = loss, config.conditioning_dropout
        return cls(tuple(sorted(parts.items())), tuple(sorted(weights.items())), *shared)

    def of_each(self, field: str) -> dict[str, Any]:
        return {name: getattr(part, field) for name, part in self.parts}

    @property
    def process(self) -> dict[str, diffusion.Process]:
        return self.of_each("process")

    @property
    def target(self) -> dict[str, Callable]:
        return self.of_each("target")

    def __call__(
        self, key: Key[Array, ""], apply: Callable, x: PyTree, condition: PyTree, null: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """Return the mean loss, and sums and counts of each modality's by parts of its time."""
        dropout_key, loss_key = jax.random.split(key)
        condition = diffusion.drop_conditioning(dropout_key, condition, null, self.dropout_rate)
        fields = ("process", "target", "times", "variates", "weighting")
        by_modality = {field: self.of_each(field) for field in fields}
        losses, t, given = self.loss(loss_key, apply, x, condition, **by_modality)
        sums, counts = diffusion.sums_by_time(self.process, losses, t, TIME_BINS)
        # A modality that is given has no loss, and the time of the first part.
        counts = jax.tree.map(lambda count, given: count.at[0].add(-given.sum()), counts, given)
        joined = (
            jnp.concatenate([each[name] for name, _ in self.parts]) for each in (sums, counts)
        )
        return diffusion.total_loss(losses, dict(self.weights)).mean(), tuple(joined)

    def time_bins(self) -> list[str]:
        bins = {name: part.time_bins() for name, part in self.parts}
        return [each.replace("loss/", f"loss/{name}/") for name in bins for each in bins[name]]
