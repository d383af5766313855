"""The cost of a sample: parameters, evaluations of the network, and time."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.evaluation.context import Context, Model


@dataclass(frozen=True)
class SamplingCost:
    """Measure the parameters that make a sample, the network's evaluations, and milliseconds.

    The first batch compiles the program, and the second is timed. With guidance, an evaluation is
    of a pair: with the condition and without. A decoder's parameters are reported apart from the
    network's, and its time is part of the sample's.

    Attributes:
        batch_size: samples made at once.
    """

    context: Context
    batch_size: int = 100
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: Model) -> dict[str, Any]:
        labels = np.arange(self.batch_size) % max(self.context.condition.num_classes, 1)
        options = dict(batch_size=self.batch_size)
        model.sample(labels, **options)
        began = time.perf_counter()
        model.sample(labels, **options, seed=model.sampling.seed + 1)
        seconds = time.perf_counter() - began
        return {
            "parameters": model.num_parameters,
            "decoder_parameters": model.num_frozen_parameters,
            "evaluations": model.num_evaluations,
            "milliseconds_per_sample": 1e3 * seconds / self.batch_size,
            "timed_batch": self.batch_size,
        }
