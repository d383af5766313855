"""Measures that a GAN's losses do not show: lost modes, copies, the discriminator's accuracy."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation.context import Context, Model
from experiments.evaluation.images import (
    Reference,
    compare_with_training,
    image_reference,
    pixel_protocol,
)
from experiments.evaluation.protocol import FeatureProtocol
from experiments.inputs.datasets import Data
from genjax.adversarial import diagnostics
from genjax.data.sets import gaussians
from genjax.training.pictures import histograms


class PlaneReference:
    """The points and modes that samples of `genjax.data.sets.gaussians` are compared with.

    A sample within three deviations of a centre is of high quality and belongs to that mode. A
    mode is covered if it has at least a tenth of an equal share. Features are coordinates.
    """

    def __init__(self, data: Data, count: int):
        self.centres, self.deviation = gaussians.MODES[data.name]
        self.num_modes = len(self.centres)
        train, held_out = (dataset.source[:] for dataset in (data.train(), data.held_out()))
        self.real, self.unseen = train["image"], held_out["image"][:count]
        self.train_labels = train["label"]
        self.examples = tuple(
            (part["image"][:count], part["label"][:count]) for part in (train, held_out)
        )

    def features(self, points: np.ndarray) -> np.ndarray:
        return points

    floats = features

    def modes(self, points: np.ndarray) -> np.ndarray:
        """Return the mode of each point; −1 for points of no mode."""
        distances = np.linalg.norm(points[:, None] - self.centres, axis=2)
        return np.where(distances.min(1) < 3 * self.deviation, distances.argmin(1), -1)


plane_reference = functools.lru_cache(maxsize=2)(PlaneReference)  # computed once for each data set


def _reference(data: Data, count: int) -> Reference | PlaneReference:
    return (plane_reference if data.name in gaussians.MODES else image_reference)(data, count)


@dataclass(frozen=True)
class PlaneModes:
    """Measure the share of points near a mode, and distances of the points to held-out ones."""

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 6  # of density and coverage: an example and 5 neighbours

    def __call__(self, model: Model) -> dict[str, Any]:
        context = self.context
        reference = plane_reference(context.data, context.num_samples)
        points = model.sample(context.draw_labels(lambda: reference.train_labels))
        return {
            "high_quality": float(np.mean(reference.modes(points) >= 0)),
            "high_quality_train": float(np.mean(reference.modes(reference.real) >= 0)),
            **compare_with_training(points, reference.real, reference.unseen),
            "num_samples": len(points),
            "samples_per_distance": len(reference.unseen),
            "labels": context.labels,
            **model.how,
        }


@dataclass(frozen=True)
class Discriminator:
    """Measure modes covered, duplicates and the discriminator's accuracy; draw its logits.

    The discriminator sees all images without augmentation. Each real image makes a pair with a
    generated one of its class. `overfitting/r_v` is `diagnostics.overfitting` of the differences in
    the pairs, so it does not depend on the shares of the classes.

    A classifier of the data finds the modes. In the plane the nearest centre does.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ("logits", "objective")
    least_held_out: ClassVar[int] = 2  # of a nearest neighbour

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        data = self.context.data
        return {} if data.name in gaussians.MODES else pixel_protocol(data)

    def __call__(self, model: Model) -> dict[str, Any]:
        context = self.context
        reference = _reference(context.data, context.num_samples)
        labels = context.draw_labels(lambda: reference.train_labels)
        samples = model.sample(labels)
        count, features = min(len(samples), len(reference.unseen)), reference.features(samples)
        predicted, expected = reference.modes(features), reference.modes(reference.unseen)
        judge, objective = model.functions["logits"], model.functions["objective"]

        def pairs(examples: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
            """Return logits of real examples, and of generated ones of the same classes."""
            generated = reference.floats(model.sample(labels))
            return jnp.asarray(judge(examples, labels)), jnp.asarray(judge(generated, labels))

        (train, fake), (held_out, others) = (pairs(*each) for each in reference.examples)
        accuracies = functools.partial(diagnostics.accuracies, objective)
        of_train, of_held_out = accuracies(train, fake), accuracies(held_out, others)
        r_v = diagnostics.overfitting(train - fake, held_out - others, jnp.zeros(1))
        logits = {"training": train, "held out": held_out, "generated": fake}
        shown = {name: np.asarray(each) for name, each in logits.items()}
        edges = diagnostics.histogram_edges(*shown.values())
        return {
            "modes_covered": float(diagnostics.modes_covered(predicted, reference.num_modes)),
            "num_modes": float(reference.num_modes),
            "divergence_of_modes": diagnostics.divergence_of_modes(
                predicted, expected, reference.num_modes
            ),
            "duplicate_rate": diagnostics.duplicate_rate(
                features[:count], reference.unseen[:count]
            ),
            "accuracy/train": float(of_train["accuracy/real"]),
            "accuracy/held_out": float(of_held_out["accuracy/real"]),
            "accuracy/samples": float(of_train["accuracy/fake"]),
            "overfitting/r_v": float(r_v),
            "num_samples": len(samples),
            "labels": context.labels,
            "logits": histograms(
                {name: diagnostics.histogram(each, edges) for name, each in shown.items()}, edges
            ),
        }
