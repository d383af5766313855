"""Refuse numbers of a config that are out of range, before anything is computed."""

import math
from typing import Any

from genjax.training.workdir import flatten

# The least value of fields by their last name. An interval of 0 is "off": the action happens after
# the last step alone, or not at all.
LEAST = {
    "seed": 0,
    "every": 0,
    "log_every": 0,
    "snapshot_every": 0,
    "max_skipped_steps": 0,
    "deviations": 0,
    "keep_every": 0,
    "keep": 1,
    "num_steps": 1,
    "steps": 1,  # of a student's grid
    "critic_updates": 1,
    "count": 1,  # of a teacher's pairs
    "batch_size": 1,
    "accumulation_steps": 1,
    "profile_at": 1,  # the profile follows this step, and step 0 is none
    "per_class": 1,
    "num_samples": 1,
    "num_images": 1,  # of a likelihood
    "patch_size": 1,
    "width": 1,
    "depth": 1,
    "num_heads": 1,
    "rank": 1,
    "learning_rate": 0,
    "weight_decay": 0,
}
DECAYS = ("b1", "b2")  # of an optimizer's moments
PROBABILITIES = ("conditioning_dropout", "dropout", "dropout_rate")
SEEDS = 2**32  # JAX's keys drop higher bits, so two seeds would give the same key


def check_numbers(config: Any) -> None:
    """Check the numbers of a config.

    Raises:
        ValueError: a number is not finite, or out of range, as a seed, a count or a probability.
    """
    for name, value in flatten(config.to_dict()):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"config.{name} is {number}; it must be finite")
        last = name.rpartition(".")[2]
        if name.startswith("averages."):  # a relative width is below 1
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"config.{name} is {value}; it must be above 0")
            continue
        # A regularizer is turned off by a weight of 0.
        least = 1 if name.startswith("regularizers.") else LEAST.get(last)
        if last in LEAST and isinstance(value, int | float) and value < least:
            raise ValueError(f"config.{name} is {value}; it must be at least {least}")
        if last in PROBABILITIES and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"config.{name} is {value}; it is a probability, from 0 to 1")
        if last in DECAYS and isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"config.{name} is {value}; it must be at least 0 and below 1")
        if last == "seed" and value >= SEEDS:
            raise ValueError(f"config.{name} is {value}; it must be below {SEEDS}")
