"""How uncertain the figures of few examples are."""

import math
from collections.abc import Mapping
from typing import Any

FEW = 200  # below, figures vary so much that they are warned of


def compared_examples(report: Mapping[str, Any]) -> int | None:
    """Return with how many examples a report's figures compare; None if it does not say so."""
    return report.get("samples_per_distance", report.get("num_samples"))


def describe_few(title: str, count: int) -> str:
    """Return how uncertain figures from so few examples are.

    A share p of n examples has a 95 % interval of ±1.96·√(p(1 − p)/n), which is widest at p = 1/2.
    """
    half = 1.96 * math.sqrt(0.25 / count)
    return (
        f"measures compare with only {count} examples of {title}: shares such as precision and "
        f"accuracy are known to ±{100 * half:.0f} points (95 % interval), and Fréchet distances "
        "are too large; compare them only between runs with as many examples"
    )
