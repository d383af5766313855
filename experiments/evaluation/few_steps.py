"""Measures of samples by the number of steps that make them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.evaluation.context import Context, Model
from experiments.evaluation.figures import FEW_STEPS
from experiments.evaluation.images import (
    Samples,
    compare,
    image_reference,
    pixel_features,
    pixel_protocol,
)
from experiments.evaluation.protocol import FeatureProtocol


@dataclass(frozen=True)
class FewSteps:
    """Measure class accuracy, Fréchet distance and recall at several numbers of steps.

    The figures are those of `Samples`, of as many samples with the same labels and seeds.

    A figure's name in the report ends in its number of steps: `class_accuracy_at_4`.

    Attributes:
        num_steps: the numbers of steps.
    """

    context: Context
    num_steps: tuple[int, ...] = (1, 2, 4, 8)
    needs: ClassVar[tuple[str, ...]] = ()
    varies: ClassVar[tuple[str, ...]] = ("num_steps",)  # fields of `config.sampling`
    least_held_out: ClassVar[int] = Samples.least_held_out

    def __post_init__(self):
        self.context.check_classes("FewSteps")

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        return pixel_protocol(self.context.data)

    def __call__(self, model: Model) -> dict[str, Any]:
        context = self.context
        reference = image_reference(context.data, context.num_samples)
        labels = context.draw_labels(lambda: reference.train_labels)
        report = {}
        for num_steps in self.num_steps:
            images = model.sample(labels, num_steps=num_steps)
            figures = compare(pixel_features(images), reference.unseen)
            if context.class_conditional:
                figures |= reference.accuracy(images, labels)
            report |= {
                f"{name}_at_{num_steps}": figures[name] for name in FEW_STEPS if name in figures
            }
        return report | {
            "num_samples": len(labels),
            "samples_per_distance": len(reference.unseen),
            "labels": context.labels,
        }
