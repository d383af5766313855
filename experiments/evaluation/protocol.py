"""The protocol of a measure: a record of all that its figures depend on besides the run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from experiments.evaluation.context import Model
from experiments.evaluation.uncertainty import describe_uncertainty

PROTOCOL = "protocol_of_"  # before a measure's name, in a report


@dataclass(frozen=True)
class FeatureProtocol:
    """How pictures become the features that are compared.

    Attributes:
        network: in words; "none" for pixels.
        parameters_sha256: of the network's parameters, as `parameters_digest` of
            `genjax.pretrained.variables` gives it; None without a network.
        rounding: of samples before anything else, "uint8" or "float".
        resizing: in words.
        antialiasing: whether resizing filters before it reduces; None if nothing is resized.
    """

    network: str
    parameters_sha256: str | None = None
    rounding: str = "uint8"
    resizing: str = "none"
    antialiasing: bool | None = None


@dataclass(frozen=True)
class Protocol:
    """How the figures of a measure were made.

    Attributes:
        num_samples: how many samples were measured; None if the measure does not say so.
        samples_per_distance: how many samples and as many held-out examples a distance compares, if
            that is another number; None if the measure does not say so.
        labels: how classes were drawn, as in `Context`; None if the measure draws none.
        weights, average: the weights' name, and the rule of their average; None for the last
            step's parameters.
        sampling: sampler, steps, guidance and what else the task says of it.
        seed: of the samples.
        features: by a short name of the network.
        uncertainty: how extrapolated distances and intervals were made, in words; None without any.
    """

    num_samples: int | None
    samples_per_distance: int | None
    labels: str | None
    weights: str
    average: str | None
    sampling: Mapping[str, Any]
    seed: int
    features: Mapping[str, FeatureProtocol]
    uncertainty: str | None


def protocol_of(evaluator: Any, model: Model, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Protocol` of an evaluator's figures, as a dictionary for a report.

    Numbers of samples and labels are those that the figures name: an evaluator's context has them
    too, but not every evaluator draws samples by it. An evaluator may have a method
    `features() -> {name: FeatureProtocol}`.
    """
    how = dict(model.how)
    weights, seed = how.pop("weights"), how.pop("seed")
    features = evaluator.features() if hasattr(evaluator, "features") else {}
    counts = (figures.get(name) for name in ("num_samples", "samples_per_distance", "labels"))
    uncertain = describe_uncertainty(figures, getattr(evaluator, "resamples", 0))
    return asdict(Protocol(*counts, weights, model.average, how, seed, features, uncertain))
